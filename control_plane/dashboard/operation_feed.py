"""The newest operations for everybody who looks at the list: read once, sent where they changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection
from sse_starlette import ServerSentEvent

from control_plane import pages
from control_plane.dashboard.event_stream import RETRY_MILLISECONDS
from control_plane.dashboard.messages import content_of, json_text
from control_plane.database import operations
from control_plane.database.operations import OperationHead
from control_plane.database.session import Database
from control_plane.operation_messages import operation_messages
from everstep.control.v1.operations_pb2 import Operation
from everstep.errors import EverstepError

_log = structlog.get_logger(__name__)

#: Operations that the feed keeps up to date; older ones are listed in pages.
NEWEST: Final = 500
#: Seconds between looks at the database, one look for all who are subscribed.
LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True)
class _Entry:
    head: OperationHead
    #: The look that found it changed.
    version: int
    content: dict[str, Any]


class OperationFeed:
    """Looks at the database while somebody is subscribed.

    Args:
        database: The truth, whichever control plane has written it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: dict[str, _Entry] = {}
        self._version = 0
        self._subscribers = 0
        self._looked = asyncio.Condition()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Ends every stream."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        async with self._looked:
            self._looked.notify_all()

    async def subscribe(self) -> AsyncGenerator[ServerSentEvent]:
        """First all operations, then those that changed and the ids of those that are gone."""
        self._subscribers += 1
        if self._looking is None or self._looking.done():
            # What was read for earlier subscribers may be old by now.
            self._version = 0
            self._entries = {}
            self._looking = asyncio.create_task(self._look_again_and_again())
        sent: set[str] = set()
        seen = 0
        try:
            yield ServerSentEvent(retry=RETRY_MILLISECONDS, comment="")
            while True:
                async with self._looked:
                    while not self._closed and self._version <= seen:
                        await self._looked.wait()
                if self._closed:
                    return
                message = self._message(sent, seen)
                seen = self._version
                if message is not None:
                    yield message
        finally:
            self._subscribers -= 1

    def _message(self, sent: set[str], seen: int) -> ServerSentEvent | None:
        """What a subscriber has not seen yet; `sent` becomes what it has."""
        changed = [entry.content for entry in self._entries.values() if entry.version > seen]
        removed = sorted(sent - self._entries.keys())
        sent.clear()
        sent.update(self._entries)
        if seen and not changed and not removed:
            return None
        content: dict[str, Any] = {"complete": not seen, "changed": changed, "removed": removed}
        if not seen and len(self._entries) == NEWEST:
            last = list(self._entries.values())[-1].head
            content["next_page_token"] = pages.encode_token(last.create_time, last.operation_id)
        return ServerSentEvent(json_text(content), event="operations")

    async def _look_again_and_again(self) -> None:
        while self._subscribers:
            try:
                await self._look()
            except EverstepError as error:
                _log.warning("operations not read for the dashboard", error=error.message)
            except Exception:
                _log.exception("operations not read for the dashboard")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        heads = await self._database.read(operations.newest_heads, NEWEST)
        known = {name: entry.head for name, entry in self._entries.items()}
        changed = [head.operation_id for head in heads if known.get(head.operation_id) != head]
        contents = await self._database.read(_summaries, changed) if changed else {}
        if changed or len(heads) != len(known) or not self._version:
            version = self._version + 1
            self._entries = {
                head.operation_id: (
                    _Entry(head, version, contents[head.operation_id])
                    if head.operation_id in contents
                    else self._entries[head.operation_id]
                )
                for head in heads
                if head.operation_id in contents or head.operation_id in self._entries
            }
            async with self._looked:
                self._version = version
                self._looked.notify_all()


def summary(operation: Operation) -> Operation:
    """An operation without what a list does not show."""
    shown = Operation()
    shown.CopyFrom(operation)
    for field in ("strategy", "result", "restart_policy", "latest_checkpoint", "overrides"):
        shown.ClearField(field)
    del shown.attempts[:-1]
    shown.error.ClearField("detail")
    if not operation.HasField("error"):
        shown.ClearField("error")
    return shown


def _summaries(connection: Connection, operation_ids: list[str]) -> dict[str, dict[str, Any]]:
    records = operations.find_many(connection, operation_ids)
    messages = operation_messages(connection, records)
    return {message.operation_id: content_of(summary(message)) for message in messages}
