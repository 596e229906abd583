"""An attempt's events: numbered, written to the journal, then shown to whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from everstep.training.v1.progress_pb2 import PhaseChanged, TrainingPosition, TrainingProgress
from trainer_service.journal import Journal

#: Events read from the journal at a time, so that a watcher's memory stays flat.
PAGE: Final = 256
_LAST_WORDS: Final = ("completed", "failed", "cancelled")


class AttemptProgress:
    """The events of one attempt.

    A durable event has its number and stands in the journal before any watcher sees it. Of
    transient ones (step metrics) only the newest is kept: a slow watcher misses the others.
    """

    def __init__(
        self,
        journal: Journal,
        operation_id: str,
        attempt: int,
        *,
        last_index: int = 0,
        finished: bool = False,
    ) -> None:
        self.operation_id = operation_id
        self.attempt = attempt
        self.last_index = last_index
        self.finished = finished
        self.position = TrainingPosition()
        self.phase = PhaseChanged()
        self._journal = journal
        self._publishing = asyncio.Lock()
        self._latest: TrainingProgress | None = None
        self._latest_number = 0
        self._changed = asyncio.Event()

    async def publish(self, event: TrainingProgress) -> None:
        """Gives a durable event its number and its place in the journal.

        After the last word of an attempt nothing more is taken.
        """
        async with self._publishing:
            if self.finished:
                return
            self._complete(event)
            event.index = self.last_index + 1
            last = event.WhichOneof("event") in _LAST_WORDS
            stored = asyncio.ensure_future(
                asyncio.to_thread(
                    self._journal.append,
                    self.operation_id,
                    self.attempt,
                    event.index,
                    event.SerializeToString(),
                    last,
                )
            )
            # A cancelled publisher must not leave the number taken and the count behind.
            try:
                await asyncio.shield(stored)
            except asyncio.CancelledError:
                await stored
                self._stored(event, last)
                raise
            self._stored(event, last)

    def show(self, event: TrainingProgress) -> None:
        """Shows a transient event, which replaces the one before it."""
        if self.finished:
            return
        self._complete(event)
        self._latest = event
        self._latest_number += 1
        self._wake()

    async def follow(self, after_index: int) -> AsyncIterator[TrainingProgress]:
        """Replays the durable events after an index, then follows to the last word."""
        cursor = after_index
        seen = self._latest_number
        while True:
            changed = self._changed
            while cursor < self.last_index:
                page = await asyncio.to_thread(
                    self._journal.read, self.operation_id, self.attempt, cursor, PAGE
                )
                if not page:
                    return
                for index, payload in page:
                    yield TrainingProgress.FromString(payload)
                    cursor = index
            if self.finished and cursor >= self.last_index:
                return
            if self._latest is not None and seen < self._latest_number:
                seen = self._latest_number
                yield self._latest
            await changed.wait()

    def _stored(self, event: TrainingProgress, last: bool) -> None:
        self.last_index = event.index
        self.finished = last
        if event.HasField("phase_changed"):
            self.phase = event.phase_changed
        self._wake()

    def _complete(self, event: TrainingProgress) -> None:
        event.operation_id = self.operation_id
        event.attempt = self.attempt
        now = Timestamp()
        now.GetCurrentTime()
        event.time.CopyFrom(now)
        if not event.HasField("position"):
            event.position.CopyFrom(self.position)
        event.position.fraction = max(event.position.fraction, self.position.fraction)
        self.position = event.position

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


Publish = Callable[[TrainingProgress], Awaitable[None]]
