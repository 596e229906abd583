"""Logs as server-sent events: replayed after a sequence, then followed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from sse_starlette import ServerSentEvent

from control_plane.dashboard.messages import content_of, error_content, json_text
from control_plane.event_log import EventLog
from everstep.control.v1.operations_pb2 import WatchOperationResponse
from everstep.errors import EverstepError, FieldViolation, Reason

_log = structlog.get_logger(__name__)

#: Seconds between two transient events of one stream; the newest is what is sent.
TRANSIENT_SECONDS: Final = 0.1
#: Seconds between looks at an operation that has ended: it may be resumed.
ENDED_SECONDS: Final = 1.0
#: Milliseconds a browser waits before it opens a broken stream again.
RETRY_MILLISECONDS: Final = 1000
_CURSOR: Final = re.compile(r"^([a-z0-9][a-z0-9-]{0,63})=([0-9]{1,18})$")
#: The stream ends without a word, and is opened again: the service stops, or the database is away.
_PASSING: Final = frozenset({Reason.DRAINING, Reason.DATABASE_UNAVAILABLE})


class Cursors:
    """How far the logs of several operations were read; as text, `op-1=12 op-2=7`."""

    def __init__(self, sequences: Mapping[str, int]) -> None:
        self.sequences = dict(sequences)

    @classmethod
    def parse(cls, text: str) -> Cursors:
        """Reads what `str()` wrote.

        Raises:
            EverstepError: INVALID_REQUEST.
        """
        matches = [_CURSOR.match(part) for part in text.split()]
        if not all(matches):
            raise EverstepError(
                Reason.INVALID_REQUEST,
                "Last-Event-ID is not one that this stream gave; open it without one",
                violations=[FieldViolation("last_event_id", "not OPERATION=SEQUENCE ...")],
            )
        return cls({match[1]: int(match[2]) for match in matches if match is not None})

    def __str__(self) -> str:
        return " ".join(f"{name}={sequence}" for name, sequence in self.sequences.items())


class EventStreams:
    """Makes streams of one operation's log, or of several merged.

    `events` carries a list of OperationEvent. Its id is the last sequence in it; a list of
    transient events has none, so that the browser keeps the id before. `compacted` says where the
    log begins that is left; `refused` carries the error with which an operation's stream ends.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def of_one(
        self, operation_id: str, after_sequence: int
    ) -> AsyncGenerator[ServerSentEvent]:
        """Every durable event of an operation, once and in order; it goes on after its end."""
        yield ServerSentEvent(retry=RETRY_MILLISECONDS, comment="")
        async with aclosing(self._follow(operation_id, after_sequence)) as followed:
            async for message, sequence in followed:
                if sequence is not None:
                    message.id = str(sequence)
                yield message

    async def of_several(self, cursors: Cursors) -> AsyncGenerator[ServerSentEvent]:
        """The same for several operations; the id is how far each of them is."""
        yield ServerSentEvent(retry=RETRY_MILLISECONDS, comment="")
        merged: asyncio.Queue[tuple[str, ServerSentEvent, int | None] | None] = asyncio.Queue(1)

        async def follow(operation_id: str, after_sequence: int) -> None:
            async with aclosing(self._follow(operation_id, after_sequence)) as followed:
                async for message, sequence in followed:
                    await merged.put((operation_id, message, sequence))
            await merged.put(None)

        tasks = [asyncio.create_task(follow(*item)) for item in cursors.sequences.items()]
        try:
            left = len(tasks)
            while left:
                item = await merged.get()
                if item is None:
                    left -= 1
                    continue
                operation_id, message, sequence = item
                if sequence is not None:
                    cursors.sequences[operation_id] = sequence
                    message.id = str(cursors)
                yield message
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self, operation_id: str, after_sequence: int
    ) -> AsyncGenerator[tuple[ServerSentEvent, int | None]]:
        """Messages, each with the sequence that it comes to, if it comes to one."""
        cursor = after_sequence
        while True:
            try:
                async with aclosing(self._log.watch(operation_id, cursor)) as responses:
                    async for response in responses:
                        events = WatchOperationResponse.FromString(response).batch.events
                        if not events:
                            continue
                        content = json_text([content_of(event) for event in events])
                        last = events[-1].sequence
                        yield (ServerSentEvent(content, event="events"), last or None)
                        if last:
                            cursor = last
                        else:
                            await asyncio.sleep(TRANSIENT_SECONDS)
            except EverstepError as error:
                if error.reason in _PASSING:
                    return
                if error.reason is not Reason.HISTORY_COMPACTED:
                    content = json_text({"operation_id": operation_id, **error_content(error)})
                    yield (ServerSentEvent(content, event="refused"), None)
                    return
                cursor = int(error.metadata["first_sequence"]) - 1
                content = json_text({"operation_id": operation_id, "first_sequence": cursor + 1})
                yield (ServerSentEvent(content, event="compacted"), cursor)
                continue
            await asyncio.sleep(ENDED_SECONDS)
