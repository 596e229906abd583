"""Whether a trainer is still there, as seen by those who follow its trainings."""

from __future__ import annotations

import asyncio
import time

from control_plane import times
from control_plane.database.trainers import TrainerRecord


class TrainerLeases:
    """Counts a lease as ended only when the trainer could have renewed it.

    While the control plane itself was away (restarted, suspended), no trainer could: each then has
    one more lease's time to be heard.
    """

    def __init__(self, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._last_seen_running = time.monotonic()
        self._grace_end = times.after(lease_seconds)

    async def keep_running(self) -> None:
        """Runs until cancelled, to notice when the control plane itself was away."""
        while True:
            self._notice_absence()
            await asyncio.sleep(self.lease_seconds / 10)

    def _notice_absence(self) -> None:
        now = time.monotonic()
        if now - self._last_seen_running > self.lease_seconds / 2:
            self._grace_end = times.after(self.lease_seconds)
        self._last_seen_running = now

    def has_ended(self, trainer: TrainerRecord | None) -> bool:
        """Whether the trainer's lease has ended; one that is unknown never had one."""
        if trainer is None:
            return True
        self._notice_absence()
        return times.now() > max(trainer.lease_expire_time, self._grace_end)
