"""An attempt's events: numbered, written to the journal, then shown to whoever watches."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from everstep.rpc.repeated import RepeatedField
from everstep.training.v1.progress_pb2 import (
    PhaseChanged,
    TrainingPosition,
    TrainingProgress,
    Warning,
)
from trainer_service.journal import Journal
from trainer_service.work_at_risk import RiskMeter

_log = structlog.get_logger(__name__)

#: Of the warning that is shown while the journal's disk is full.
JOURNAL_FULL: Final = "JOURNAL_FULL"
#: Between tries to write it.
FULL_PAUSE_SECONDS: Final = 1.0
#: Events and bytes read from the journal at a time, so that a watcher's memory stays flat.
PAGE_EVENTS: Final = 256
PAGE_BYTES: Final = 256 * 1024
_NEXT: Final = RepeatedField(TrainingProgress.NEXT_FIELD_NUMBER)
_LAST_WORDS: Final = ("completed", "failed", "cancelled")


class AttemptProgress:
    """The events of one attempt.

    A durable event has its number and stands in the journal before any watcher sees it. Of
    transient ones (step metrics, progress of a phase) only the newest of each kind is kept: a slow
    watcher misses the others.

    Args:
        last_index: Of the newest event in the journal.
        finished: Whether that was the attempt's last word.
        position: How far the attempt was.
        risk: Measures what a loss would cost.
    """

    def __init__(
        self,
        journal: Journal,
        operation_id: str,
        attempt: int,
        *,
        last_index: int = 0,
        finished: bool = False,
        position: TrainingPosition | None = None,
        risk: RiskMeter | None = None,
    ) -> None:
        self.operation_id = operation_id
        self.attempt = attempt
        self.last_index = last_index
        self.finished = finished
        self.position = position or TrainingPosition()
        self.risk = risk or RiskMeter()
        self.phase = PhaseChanged()
        self._journal = journal
        self._publishing = asyncio.Lock()
        #: Number and bytes of the newest transient event, by kind.
        self._transients: dict[str, tuple[int, bytes]] = {}
        self._transient_number = 0
        self._changed = asyncio.Event()

    async def publish(self, event: TrainingProgress) -> None:
        """Gives a durable event its number and its place in the journal.

        After the last word of an attempt nothing more is taken. While the journal's disk is full it
        waits, and so does the training before long: what is said must not be lost.
        """
        async with self._publishing:
            if self.finished:
                return
            self._complete(event)
            event.index = self.last_index + 1
            last = event.WhichOneof("event") in _LAST_WORDS
            waited = False
            while not await self._append(event, last):
                if not waited:
                    self._tell_full()
                waited = True
                await asyncio.sleep(FULL_PAUSE_SECONDS)
            if waited:
                _log.info("the journal has room again", operation_id=self.operation_id)

    async def _append(self, event: TrainingProgress, last: bool) -> bool:
        """Writes an event to the journal; False where there is no room for it."""
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
        try:
            await asyncio.shield(stored)
        except asyncio.CancelledError:
            # A cancelled publisher must not leave the number taken and the count behind.
            with suppress(sqlite3.OperationalError):
                await stored
                self._stored(event, last)
            raise
        except sqlite3.OperationalError as error:
            _log.warning("journal not written", operation_id=self.operation_id, error=str(error))
            return False
        self._stored(event, last)
        return True

    def _tell_full(self) -> None:
        """Whoever watches hears why nothing more is said; it cannot be kept."""
        message = (
            "the trainer's journal cannot be written, so the training waits; make room on the disk "
            "of its EVERSTEP_STATE_DIR"
        )
        self.show(TrainingProgress(warning=Warning(reason=JOURNAL_FULL, message=message)))

    def show(self, event: TrainingProgress) -> None:
        """Shows a transient event, which replaces the one of its kind before it."""
        if self.finished:
            return
        self._complete(event)
        self._transient_number += 1
        kind = event.WhichOneof("event") or ""
        self._transients[kind] = (self._transient_number, event.SerializeToString())
        self._wake()

    async def follow(self, after_index: int, batches: bool = False) -> AsyncIterator[bytes]:
        """Replays the durable events after an index, then follows to the last word.

        Gives each TrainingProgress as bytes; durable ones as the journal has them. With `batches`
        those that are there together are one message.
        """
        cursor = after_index
        seen = self._transient_number
        while True:
            changed = self._changed
            while cursor < self.last_index:
                page = await asyncio.to_thread(
                    self._journal.read,
                    self.operation_id,
                    self.attempt,
                    cursor,
                    PAGE_EVENTS,
                    PAGE_BYTES,
                )
                if not page:
                    return
                if batches:
                    (_, first), *later = page
                    yield first + _NEXT.joined(payload for _, payload in later)
                    cursor = page[-1][0]
                    continue
                for index, payload in page:
                    yield payload
                    cursor = index
            if self.finished and cursor >= self.last_index:
                return
            for number, payload in sorted(self._transients.values()):
                if number > seen:
                    seen = number
                    yield payload
            await changed.wait()

    def _stored(self, event: TrainingProgress, last: bool) -> None:
        self.last_index = event.index
        self.finished = last
        if event.HasField("phase_changed"):
            self.phase = event.phase_changed
        # What was shown before a durable event must not be shown after it.
        self._transients.clear()
        self._wake()

    def _complete(self, event: TrainingProgress) -> None:
        event.operation_id = self.operation_id
        event.attempt = self.attempt
        now = Timestamp()
        now.GetCurrentTime()
        event.time.CopyFrom(now)
        if not event.HasField("position"):
            event.position.CopyFrom(self.position)
        if event.HasField("training_restarted"):
            # The new process has a speed of its own.
            event.position.ClearField("eta_seconds")
        event.position.fraction = max(event.position.fraction, self.position.fraction)
        self.position = event.position
        self.risk.heard(event)
        if (at_risk := self.risk.measure()) is not None:
            event.at_risk.CopyFrom(at_risk)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
