"""Whether a training process still makes progress: dead is seen by its pipe, hung only by this."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from trainer_service.child.heartbeat import Activity, Beat

#: Something may take so many times the longest of its kind in the attempt, first ones left out.
LONGEST_FACTOR: Final = 20.0
#: What may well be slow is given so many times the limit: the first of its kind in a process, data
#: on its way, and all before the first step.
PATIENCE_FACTOR: Final = 12.0
_SLOW: Final = frozenset({Activity.PREPARING, Activity.LOADING})
#: Looks at the heartbeat within the limit, and the most seconds between two of them.
LOOKS: Final = 10
MAX_LOOK_SECONDS: Final = 1.0

_WORDS: Final = {
    Activity.PREPARING: "preparing",
    Activity.LOADING: "waiting for a batch",
    Activity.STEP: "in a step",
    Activity.EVALUATION: "in a batch of an evaluation",
    Activity.SNAPSHOT: "taking a snapshot",
}


@dataclass(frozen=True)
class Silence:
    """A training process has begun nothing for too long."""

    seconds: float
    beat: Beat

    @property
    def cause(self) -> str:
        """As in `hung: no step for 300 s`."""
        return f"hung: no step for {self.seconds:.0f} s"

    @property
    def description(self) -> str:
        """One line for the log."""
        return (
            f"no step for {self.seconds:.0f} s: the training process hangs after step "
            f"{self.beat.step}, {_WORDS[self.beat.activity]}; it is ended, and a new one goes on "
            "from the newest snapshot"
        )


class HangWatch:
    """Looks at the heartbeats of an attempt's processes, one after the other.

    Only the time is counted in which the trainer itself waited for a word and none came: a trainer
    that was busy, stopped, or waiting for the store for this process, says nothing about it.

    Args:
        least_seconds: The least limit; 0: nothing is watched.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._look_seconds = min(MAX_LOOK_SECONDS, least_seconds / LOOKS) or None
        self._longest: dict[Activity, float] = {}
        self._beat = Beat()
        self._silent = 0.0

    def begin(self) -> None:
        """Another process is looked at from here on."""
        self._beat, self._silent = Beat(), 0.0

    async def wait(self, word: asyncio.Future[Any], beat: Callable[[], Beat]) -> Silence | None:
        """Waits for a word; returns before it comes where the process hangs."""
        while True:
            done, _ = await asyncio.wait({word}, timeout=self._look_seconds)
            if done:
                return None
            silence = self.look(beat(), self._look_seconds or 0.0)
            if silence is not None:
                return silence

    def look(self, beat: Beat, waited: float) -> Silence | None:
        """Takes a heartbeat, so many seconds after the one before.

        Returns:
            None while there is progress, or may be.
        """
        if beat != self._beat:
            before = self._beat
            if not before.first:
                longest = max(self._longest.get(before.activity, 0.0), self._silent)
                self._longest[before.activity] = longest
            self._beat, self._silent = beat, 0.0
            return None
        self._silent += waited
        if self._silent <= self.limit(beat):
            return None
        silence = Silence(self._silent, beat)
        self._silent = 0.0
        return silence

    def limit(self, beat: Beat) -> float:
        """Seconds that what a process does now may take."""
        least = self._least_seconds
        if beat.first or beat.activity in _SLOW:
            least *= PATIENCE_FACTOR
        return max(least, LONGEST_FACTOR * self._longest.get(beat.activity, 0.0))
