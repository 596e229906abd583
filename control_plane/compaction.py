"""Old events removed from logs that are longer, or older, than the settings keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from control_plane import times
from control_plane.database import events
from control_plane.database.events import CompactableLog
from control_plane.database.session import Database
from control_plane.states import FINAL_STATES
from everstep.errors import EverstepError

_log = structlog.get_logger(__name__)

#: Seconds between rounds.
ROUND_SECONDS: Final = 60.0
#: Events removed in one transaction: other writers wait for it.
EVENTS_AT_A_TIME: Final = 1000
#: Logs looked up at a time.
LOGS_AT_A_TIME: Final = 100
DAY_SECONDS: Final = 24 * 60 * 60


class LogCompactor:
    """Removes events from the front of logs; their numbers are never given again.

    Each transaction removes some and moves the operation's `first_sequence` with them, so that a
    log has no gap whenever this is killed. What an attempt needs in order to go on stands in its
    row (its cursor), not in the log; the last event of every log stays.

    Args:
        database: Holds the logs.
        keep_events: The newest events that are kept of each operation; 0: all.
        keep_days: How long a finished operation keeps more than its last event; 0: for ever.
    """

    def __init__(self, database: Database, keep_events: int, keep_days: float) -> None:
        self._database = database
        self._keep_events = keep_events
        self._keep_days = keep_days

    async def run(self) -> None:
        """Works until cancelled; what fails is tried again in the next round."""
        while self._keep_events or self._keep_days:
            try:
                await self.compact()
            except EverstepError as error:
                _log.warning("compaction failed", error=error.message, reason=error.reason)
            except Exception:
                _log.exception("compaction failed")
            await asyncio.sleep(ROUND_SECONDS)

    async def compact(self) -> None:
        """Removes what is not to be kept, from all logs."""
        while logs := await self._compactable():
            for log in logs:
                await self._compact_one(log)

    async def _compactable(self) -> Sequence[CompactableLog]:
        if self._keep_events:
            long = await self._database.read(events.longer_than, self._keep_events, LOGS_AT_A_TIME)
            if long:
                return long
        if self._keep_days:
            oldest = times.after(-self._keep_days * DAY_SECONDS)
            states = [state.value for state in FINAL_STATES]
            return await self._database.read(events.ended_before, states, oldest, LOGS_AT_A_TIME)
        return ()

    async def _compact_one(self, log: CompactableLog) -> None:
        first: int | None = 0
        while first is not None and first < log.first_sequence:
            first = await self._database.write(
                events.remove_before, log.operation_id, log.first_sequence, EVENTS_AT_A_TIME
            )
