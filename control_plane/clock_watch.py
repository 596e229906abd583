"""The clock of this machine, which may jump; and what in the database was told by it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from sqlalchemy import Connection

from control_plane import times
from control_plane.attempt_ends import MAX_BACKOFF_SECONDS
from control_plane.database import operations, trainers
from control_plane.database.session import Database
from everstep.errors import EverstepError

_log = structlog.get_logger(__name__)

#: Seconds between looks.
LOOK_SECONDS: Final = 1.0
#: What the clock may gain or lose in between without a word.
LEAST_JUMP_SECONDS: Final = 1.0


class ClockWatch:
    """Mends leases and backoffs in the database when the clock was set back.

    They end at a time of day. After a jump back a dead trainer would look alive for as long as the
    clock went back, and an operation wait as much longer. A jump forward needs nothing: leases are
    renewed within a third of their length, and a backoff that ends early does no harm.
    """

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._database = database
        self._lease_seconds = lease_seconds

    async def run(self) -> None:
        """Watches until cancelled; what cannot be mended now is tried again."""
        # It may have been set back while no control plane ran.
        behind = 0.0
        to_mend = True
        ahead = _ahead()
        while True:
            if to_mend:
                to_mend = not await self._mend(behind)
            await asyncio.sleep(LOOK_SECONDS)
            before, ahead = ahead, _ahead()
            if abs(ahead - before) > LEAST_JUMP_SECONDS:
                _log.warning("the clock has jumped", seconds=round(ahead - before, 1))
                behind = max(0.0, before - ahead) + (behind if to_mend else 0.0)
                to_mend = True

    async def _mend(self, behind: float) -> bool:
        try:
            await self._database.write(mend_times, self._lease_seconds, behind)
        except EverstepError as error:
            _log.warning("times not mended yet", error=error.message, reason=error.reason)
            return False
        return True


def mend_times(connection: Connection, lease_seconds: float, behind: float) -> None:
    """Brings what is to come within its usual reach.

    Args:
        lease_seconds: The longest that a lease lasts.
        behind: How far the clock went back, in seconds.
    """
    trainers.cap_leases(connection, times.after(lease_seconds))
    operations.cap_owner_leases(connection, times.after(lease_seconds))
    operations.hasten_due(
        connection, times.now(), int(behind * times.SECOND), times.after(MAX_BACKOFF_SECONDS)
    )


def _ahead() -> float:
    """What the wall clock is ahead of the monotonic one, in seconds."""
    return time.time() - time.monotonic()
