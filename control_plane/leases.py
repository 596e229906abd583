"""Whether a trainer is still there, as seen by those who follow its trainings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from control_plane.database import trainers
from control_plane.database.session import Database
from control_plane.database.trainers import TrainerRecord
from everstep.errors import EverstepError

_log = structlog.get_logger(__name__)


class TrainerLeases:
    """Counts a lease as ended only when the trainer could have renewed it.

    While the control plane itself was away (restarted, suspended), or its database, no trainer
    could: each then has one more lease's time to be heard. When a lease was renewed is told by the
    monotonic clock of whoever asks, for the other one may jump.
    """

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._database = database
        self._last_seen_running = time.monotonic()
        self._grace_end = self._last_seen_running + lease_seconds
        #: By trainer the lease that it had when it was last looked at, and when that was new.
        self._renewed: dict[str, tuple[int, float]] = {}

    async def keep_running(self) -> None:
        """Runs until cancelled, to notice renewals, and when the control plane itself was away."""
        while True:
            self._notice_absence()
            try:
                self._notice_renewals(await self._database.read(trainers.every))
            except EverstepError as error:
                _log.warning("leases not read", error=error.message, reason=error.reason)
            await asyncio.sleep(self.lease_seconds / 10)

    def _notice_absence(self) -> None:
        now = time.monotonic()
        if now - self._last_seen_running > self.lease_seconds / 2:
            self._grace_end = now + self.lease_seconds
        self._last_seen_running = now

    def _notice_renewals(self, known: Iterable[TrainerRecord]) -> None:
        now = time.monotonic()
        for trainer in known:
            lease, _ = self._renewed.get(trainer.trainer_id, (0, 0.0))
            if trainer.lease_expire_time != lease:
                self._renewed[trainer.trainer_id] = (trainer.lease_expire_time, now)

    def has_ended(self, trainer: TrainerRecord | None) -> bool:
        """Whether the trainer's lease has ended; one that is unknown never had one."""
        if trainer is None:
            return True
        self._notice_absence()
        self._notice_renewals([trainer])
        return self.remaining_seconds(trainer) < 0

    def remaining_seconds(self, trainer: TrainerRecord) -> float:
        """Until the lease of a trainer ends, if it is not heard meanwhile."""
        _, renewed = self._renewed.get(trainer.trainer_id, (0, time.monotonic()))
        last_chance = max(renewed, self._database.last_trouble())
        return max(last_chance + self.lease_seconds, self._grace_end) - time.monotonic()
