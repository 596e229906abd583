"""The log of each operation: replayed from any sequence, then followed."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Final

from control_plane.attempt_log import Stored, store_end, store_position, store_words
from control_plane.database import events
from control_plane.database.session import Database
from control_plane.liveness import Liveness, store_liveness
from control_plane.log_tail import LogTail, check_cursor, read_page
from control_plane.states import FINAL_STATES
from control_plane.transients import Transients
from control_plane.watch_responses import mark_response
from everstep.errors import EverstepError, Reason
from everstep.training.v1.progress_pb2 import TrainingProgress

#: Seconds between looks at the logs without a wake-up: another control plane may have written.
POLL_SECONDS: Final = 1.0
#: Seconds of silence after which a watcher is told how far the log is.
IDLE_SECONDS: Final = 15.0


class EventLog:
    """Appends, replays and follows. The database is the truth; wake-ups are hints."""

    def __init__(self, database: Database, idle_seconds: float = IDLE_SECONDS) -> None:
        self._database = database
        self._idle_seconds = idle_seconds
        #: Of each operation that is watched.
        self._tails: dict[str, LogTail] = {}
        self._transients: defaultdict[str, Transients] = defaultdict(Transients)
        self._transient_numbers = count(1)
        self._polling: asyncio.Task[None] | None = None
        self._draining = False

    async def append(
        self, operation_id: str, attempt: int, words: Sequence[TrainingProgress]
    ) -> Stored:
        """Stores an attempt's durable events, then wakes whoever watches; see `store_words`."""
        stored = await self._database.write(store_words, operation_id, attempt, words)
        self._changed(operation_id, stored.over)
        return stored

    async def end(self, operation_id: str, attempt: int, error: EverstepError) -> None:
        """Ends an attempt that has no last word, then wakes whoever watches; see `store_end`."""
        await self._database.write(store_end, operation_id, attempt, error)
        self._changed(operation_id, over=True)

    def show(self, operation_id: str, word: TrainingProgress) -> None:
        """Shows a transient event to whoever watches; it replaces the one of its kind before it."""
        self._transients[operation_id].show(operation_id, next(self._transient_numbers), word)
        if (tail := self._tails.get(operation_id)) is not None:
            tail.announce()

    async def remember_position(
        self, operation_id: str, attempt: int, word: TrainingProgress
    ) -> float:
        """Stores how far a transient event says that the attempt is; see `store_position`."""
        return await self._database.write(store_position, operation_id, attempt, word)

    async def hear(
        self, operation_id: str, attempt: int, liveness: Liveness, seconds: float
    ) -> None:
        """Stores what is heard of an attempt, then wakes whoever watches; see `store_liveness`."""
        if await self._database.write(store_liveness, operation_id, attempt, liveness, seconds):
            self.wake(operation_id)

    def wake(self, operation_id: str) -> None:
        """There may be something new in this operation's log."""
        if (tail := self._tails.get(operation_id)) is not None:
            tail.wake()

    def drain(self) -> None:
        """Ends every watch: the service stops."""
        self._draining = True
        for tail in self._tails.values():
            tail.announce()

    async def watch(self, operation_id: str, after_sequence: int) -> AsyncGenerator[bytes]:
        """Every durable event after a sequence, once and in order, to the operation's end.

        Gives WatchOperationResponse as bytes: entries are passed on as they are stored.

        Raises:
            EverstepError: OPERATION_NOT_FOUND, FUTURE_SEQUENCE, HISTORY_COMPACTED, DRAINING.
        """
        cursor, shown = after_sequence, 0
        last_said = time.monotonic()
        self._check_open(cursor)
        with self._following(operation_id) as tail:
            if not tail.knows(cursor):
                await self._database.read(check_cursor, operation_id, cursor)
            while True:
                # Taken before looking: what comes afterwards sets it.
                changed = tail.changed
                self._check_open(cursor)
                if tail.failure is not None:
                    raise tail.failure.with_traceback(None)
                if cursor < tail.last_sequence:
                    page = tail.page(cursor)
                    if page is None:
                        page = await self._database.read(read_page, operation_id, cursor)
                    yield page.response
                    cursor, last_said = page.last_sequence, time.monotonic()
                    continue
                if tail.is_settled:
                    if cursor == tail.last_sequence and tail.state in FINAL_STATES:
                        return
                    transients = self._transients.get(operation_id)
                    if transients is not None and transients.number > shown:
                        response, shown = transients.response(shown), transients.number
                        if response is not None:
                            yield response
                            last_said = time.monotonic()
                if time.monotonic() - last_said >= self._idle_seconds:
                    yield mark_response(cursor)
                    last_said = time.monotonic()
                await changed.wait()

    def _changed(self, operation_id: str, over: bool) -> None:
        # Step metrics from before a durable event must not be shown after it.
        if over:
            self._transients.pop(operation_id, None)
        elif operation_id in self._transients:
            self._transients[operation_id].clear()
        self.wake(operation_id)

    def _check_open(self, cursor: int) -> None:
        if self._draining:
            raise EverstepError(
                Reason.DRAINING, f"the control plane stops; watch again after sequence {cursor}"
            )

    @contextmanager
    def _following(self, operation_id: str) -> Iterator[LogTail]:
        tail = self._tails.get(operation_id)
        if tail is None or tail.failure is not None:
            tail = self._tails[operation_id] = LogTail(self._database, operation_id)
            tail.wake()
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())
        tail.watchers += 1
        try:
            yield tail
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                self._unfollow(tail)

    def _unfollow(self, tail: LogTail) -> None:
        tail.close()
        if self._tails.get(tail.operation_id) is tail:
            del self._tails[tail.operation_id]
        if not self._tails and self._polling is not None:
            self._polling.cancel()
            self._polling = None

    async def _poll(self) -> None:
        """Looks at all logs that are watched, and lets watchers see how long they were silent."""
        while True:
            await asyncio.sleep(min(POLL_SECONDS, self._idle_seconds))
            try:
                heads = await self._database.read(events.heads, list(self._tails))
            except Exception as failure:
                for tail in self._tails.values():
                    tail.fail(failure)
                continue
            for tail in self._tails.values():
                if tail.head != heads.get(tail.operation_id):
                    tail.wake()
                tail.announce()
