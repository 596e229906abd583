"""How far a phase is that moves a state between memory and the store."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from everstep.training.v1 import progress_pb2
from everstep.training.v1.progress_pb2 import Phase, TrainingProgress
from trainer_service.progress import AttemptProgress

#: Seconds between two reports.
REPORT_SECONDS: Final = 0.1


class PhaseBytes:
    """Counts the bytes of a state that have arrived, and reports them as a transient event.

    Args:
        progress: Of the attempt; where it is reported.
        phase: The bytes are counted at any time, and reported while the attempt is in it.
    """

    def __init__(self, progress: AttemptProgress, phase: Phase.ValueType) -> None:
        self._progress = progress
        self._phase = phase
        self._done_bytes = 0
        self._reported = 0.0
        self._loop = asyncio.get_running_loop()

    def add_from_thread(self, count: int, total: int) -> None:
        """So many bytes more are there, of so many in all; called from any thread."""
        self._loop.call_soon_threadsafe(self._add, count, total)

    def _add(self, count: int, total: int) -> None:
        self._done_bytes += count
        now = time.monotonic()
        is_due = now - self._reported >= REPORT_SECONDS or self._done_bytes == total
        if self._progress.phase.phase != self._phase or not is_due:
            return
        self._reported = now
        self._progress.show(
            TrainingProgress(
                phase_progress=progress_pb2.PhaseProgress(
                    phase=self._phase, done_bytes=self._done_bytes, total_bytes=total
                )
            )
        )
