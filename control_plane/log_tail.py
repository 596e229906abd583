"""The newest entries of a watched log, read once for all who watch it."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import Final

from sqlalchemy import Connection

from control_plane.database import events
from control_plane.database.events import LogHead
from control_plane.database.session import Database
from control_plane.watch_responses import Page, batch_response
from everstep.errors import EverstepError, Reason

#: Entries and bytes read from the database at a time; a slow watcher holds no more.
PAGE_ENTRIES: Final = 2000
PAGE_BYTES: Final = 256 * 1024
#: Entries and bytes kept in memory of each log that is watched.
TAIL_ENTRIES: Final = 256
TAIL_BYTES: Final = 256 * 1024


class LogTail:
    """One operation's newest entries, as bytes.

    Watchers that are up to date take an entry from here; those further behind read the database
    themselves, each at its own pace. Whoever waits takes `changed` first, then looks.
    """

    def __init__(self, database: Database, operation_id: str) -> None:
        self.operation_id = operation_id
        self.watchers = 0
        #: As last read; None before that.
        self.head: LogHead | None = None
        #: Of the newest entry here.
        self.last_sequence = 0
        #: Why there is nothing more to come.
        self.failure: Exception | None = None
        #: Set at the next change, and then another one's.
        self.changed = asyncio.Event()
        self._database = database
        self._entries: deque[bytes] = deque()
        self._bytes = 0
        self._newest: tuple[int, Page] | None = None
        self._stale = False
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether all that is known to be in the log is here."""
        return self._reading is None

    @property
    def state(self) -> str:
        """Of the operation; empty before it was read."""
        return "" if self.head is None else self.head.state

    def knows(self, cursor: int) -> bool:
        """Whether the log can be watched after a sequence, as far as is known here."""
        head = self.head
        return head is not None and head.first_sequence - 1 <= cursor <= head.last_sequence

    def wake(self) -> None:
        """There may be more in the log."""
        self._stale = True
        if self._reading is None and self.failure is None:
            self._reading = asyncio.create_task(self._read())

    def fail(self, failure: Exception) -> None:
        """Ends every watch with this."""
        self.failure = failure
        self.announce()

    def announce(self) -> None:
        """Lets everyone who waits look again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def page(self, cursor: int) -> Page | None:
        """What follows a sequence; None where that is not in memory."""
        first = self.last_sequence - len(self._entries) + 1
        if not first <= cursor + 1 <= self.last_sequence:
            return None
        if self._newest is None or self._newest[0] != cursor:
            entries = list(islice(self._entries, cursor + 1 - first, None))
            self._newest = (cursor, Page(batch_response(entries), self.last_sequence))
        return self._newest[1]

    def close(self) -> None:
        """Nobody watches any more."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        try:
            while self._stale:
                self._stale = False
                await self._read_on()
        except Exception as failure:
            self.failure = failure
        finally:
            self._reading = None
            self.announce()

    async def _read_on(self) -> None:
        if self.head is None:
            self.head = head = await self._database.read(_head, self.operation_id)
            self.last_sequence = max(head.first_sequence - 1, head.last_sequence - TAIL_ENTRIES)
            self._stale = True
            return
        entries, head = await self._database.read(_entries, self.operation_id, self.last_sequence)
        self.head, self._newest = head, None
        if self.last_sequence + 1 < head.first_sequence:
            # Compacted before it was read: whoever wants it is told by the database.
            self._entries.clear()
            self._bytes, self.last_sequence = 0, head.last_sequence
            return
        for entry in entries:
            self._entries.append(entry)
            self._bytes += len(entry)
        self.last_sequence += len(entries)
        while len(self._entries) > TAIL_ENTRIES or self._bytes > TAIL_BYTES:
            self._bytes -= len(self._entries.popleft())
        if self.last_sequence < head.last_sequence:
            self._stale = True
            self.announce()


def read_page(connection: Connection, operation_id: str, cursor: int) -> Page:
    """The page that follows a sequence, where something does.

    Raises:
        EverstepError: OPERATION_NOT_FOUND, HISTORY_COMPACTED.
    """
    entries, head = _entries(connection, operation_id, cursor)
    _check_kept(operation_id, cursor, head)
    return Page(batch_response(entries), cursor + len(entries))


def check_cursor(connection: Connection, operation_id: str, cursor: int) -> None:
    """Whether a log can be watched after a sequence.

    Raises:
        EverstepError: OPERATION_NOT_FOUND, FUTURE_SEQUENCE, HISTORY_COMPACTED.
    """
    head = _head(connection, operation_id)
    if cursor > head.last_sequence:
        raise _future_sequence(operation_id, cursor, head.last_sequence)
    _check_kept(operation_id, cursor, head)


def operation_not_found(operation_id: str) -> EverstepError:
    """OPERATION_NOT_FOUND, in the words that every call uses."""
    return EverstepError(
        Reason.OPERATION_NOT_FOUND,
        f"there is no operation {operation_id}; ListOperations names those that there are",
        metadata={"operation_id": operation_id},
    )


def _entries(connection: Connection, operation_id: str, cursor: int) -> tuple[list[bytes], LogHead]:
    entries = events.page(connection, operation_id, cursor, PAGE_ENTRIES, PAGE_BYTES)
    # Looked at afterwards: whatever was compacted before the page was read is seen here.
    return entries, _head(connection, operation_id)


def _head(connection: Connection, operation_id: str) -> LogHead:
    head = events.head(connection, operation_id)
    if head is None:
        raise operation_not_found(operation_id)
    return head


def _check_kept(operation_id: str, cursor: int, head: LogHead) -> None:
    first = head.first_sequence
    if cursor + 1 < first:
        raise EverstepError(
            Reason.HISTORY_COMPACTED,
            f"the log of {operation_id} begins with sequence {first}, what was before it is not "
            f"kept any more; GetOperation has the state so far, watch after {first - 1}",
            metadata={"first_sequence": str(first)},
        )


def _future_sequence(operation_id: str, after: int, last: int) -> EverstepError:
    return EverstepError(
        Reason.FUTURE_SEQUENCE,
        f"the log of {operation_id} is at sequence {last}, not yet at {after}; watch after {last} "
        "or an earlier one",
        metadata={"last_sequence": str(last)},
    )
