"""The log of each operation: replayed from any sequence, then followed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from control_plane.attempt_log import Stored, store_position, store_words
from control_plane.database import events
from control_plane.database.events import LogHead
from control_plane.database.session import Database
from control_plane.states import FINAL_STATES
from everstep.control.v1.operations_pb2 import EventBatch, OperationEvent, WatchOperationResponse
from everstep.errors import EverstepError, Reason
from everstep.training.v1.progress_pb2 import TrainingProgress

#: Entries read from the database at a time.
PAGE: Final = 500
#: Bytes of a response, well below what a message may have.
BATCH_BYTES: Final = 1024 * 1024
#: Seconds between looks at the log without a wake-up: another control plane may have written.
POLL_SECONDS: Final = 1.0
#: Seconds of silence after which a watcher is told how far the log is.
IDLE_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Transient:
    """The newest step metrics of an operation."""

    number: int
    entry: OperationEvent


class EventLog:
    """Appends, replays and follows. The database is the truth; wake-ups are hints."""

    def __init__(self, database: Database, idle_seconds: float = IDLE_SECONDS) -> None:
        self._database = database
        self._idle_seconds = idle_seconds
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._transients: dict[str, Transient] = {}
        self._transient_number = 0
        self._draining = False

    async def append(
        self, operation_id: str, attempt: int, words: Sequence[TrainingProgress]
    ) -> Stored:
        """Stores an attempt's durable events, then wakes whoever watches; see `store_words`."""
        stored = await self._database.write(store_words, operation_id, attempt, words)
        # Step metrics from before a durable event must not be shown after it.
        self._transients.pop(operation_id, None)
        self.wake(operation_id)
        return stored

    def show(self, operation_id: str, word: TrainingProgress) -> None:
        """Shows a transient event to whoever watches; it replaces the one before it."""
        self._transient_number += 1
        entry = OperationEvent(operation_id=operation_id, time=word.time, progress=word)
        self._transients[operation_id] = Transient(self._transient_number, entry)
        self.wake(operation_id)

    async def remember_position(
        self, operation_id: str, attempt: int, word: TrainingProgress
    ) -> None:
        """Stores how far a transient event says that the attempt is."""
        await self._database.write(store_position, operation_id, attempt, word)

    def wake(self, operation_id: str) -> None:
        """There may be something new in this operation's log."""
        for watcher in self._watchers.get(operation_id, ()):
            watcher.set()

    def drain(self) -> None:
        """Ends every watch: the service stops."""
        self._draining = True
        for operation_id in self._watchers:
            self.wake(operation_id)

    async def watch(
        self, operation_id: str, after_sequence: int
    ) -> AsyncGenerator[WatchOperationResponse]:
        """Every durable event after a sequence, once and in order, to the operation's end.

        Raises:
            EverstepError: OPERATION_NOT_FOUND, FUTURE_SEQUENCE, DRAINING.
        """
        with self._subscription(operation_id) as changed:
            cursor = after_sequence
            shown = 0
            last_said = time.monotonic()
            first = True
            while True:
                if self._draining:
                    raise EverstepError(
                        Reason.DRAINING,
                        f"the control plane stops; watch again after sequence {cursor}",
                    )
                changed.clear()
                payloads, head = await self._database.read(_read_page, operation_id, cursor)
                if head is None:
                    raise operation_not_found(operation_id)
                if first and cursor > head.last_sequence:
                    raise _future_sequence(operation_id, cursor, head.last_sequence)
                first = False
                for batch in _batches(payloads):
                    yield WatchOperationResponse(batch=batch)
                    cursor = batch.events[-1].sequence
                    last_said = time.monotonic()
                if payloads:
                    continue
                if head.state in FINAL_STATES and cursor >= head.last_sequence:
                    return
                transient = self._transients.get(operation_id)
                if transient is not None and transient.number > shown:
                    shown = transient.number
                    yield WatchOperationResponse(batch=EventBatch(events=[transient.entry]))
                    last_said = time.monotonic()
                elif time.monotonic() - last_said >= self._idle_seconds:
                    yield WatchOperationResponse(through_sequence=cursor)
                    last_said = time.monotonic()
                await _wait(changed, min(POLL_SECONDS, self._idle_seconds))

    @contextmanager
    def _subscription(self, operation_id: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(operation_id, set())
        watchers.add(changed)
        try:
            yield changed
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(operation_id) is watchers:
                del self._watchers[operation_id]


def operation_not_found(operation_id: str) -> EverstepError:
    """OPERATION_NOT_FOUND, in the words that every call uses."""
    return EverstepError(
        Reason.OPERATION_NOT_FOUND,
        f"there is no operation {operation_id}; ListOperations names those that there are",
        metadata={"operation_id": operation_id},
    )


def _future_sequence(operation_id: str, after: int, last: int) -> EverstepError:
    return EverstepError(
        Reason.FUTURE_SEQUENCE,
        f"the log of {operation_id} is at sequence {last}, not yet at {after}; watch after {last} "
        "or an earlier one",
        metadata={"last_sequence": str(last)},
    )


def _read_page(
    connection: Connection, operation_id: str, cursor: int
) -> tuple[list[bytes], LogHead | None]:
    payloads = events.page(connection, operation_id, cursor, PAGE)
    return payloads, events.head(connection, operation_id)


def _batches(payloads: Sequence[bytes]) -> Iterator[EventBatch]:
    """The entries in order, in messages that are not too large."""
    batch, size = EventBatch(), 0
    for payload in payloads:
        if batch.events and size + len(payload) > BATCH_BYTES:
            yield batch
            batch, size = EventBatch(), 0
        batch.events.add().ParseFromString(payload)
        size += len(payload)
    if batch.events:
        yield batch


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
