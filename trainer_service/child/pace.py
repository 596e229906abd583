"""How long the rest of a training takes, by how fast it was lately."""

from __future__ import annotations

import math
from typing import Final

#: Seconds after which a speed counts a third of what it did: a change shows within a minute.
MEMORY_SECONDS: Final = 20.0
#: Seconds of steps after which the speed is known.
KNOWN_SECONDS: Final = 1.0
#: A step counts as no longer than so many usual ones: the machine slept, or the process did.
LONGEST_STEP: Final = 10.0


class Pace:
    """The speed of one training process.

    Steps are timed by themselves: what lies between them (a snapshot, an evaluation, the time
    before the first step) is no part of theirs. A newer step counts more than an older one.
    Snapshots and evaluations that are still to come are counted in as they were lately.
    """

    def __init__(self) -> None:
        #: Sums that fade: steps, and seconds of steps and of snapshots.
        self._steps = self._step_seconds = self._snapshot_seconds = 0.0
        self._is_warm = False
        #: Of the last evaluation; None before the first.
        self._evaluation_seconds: float | None = None

    def stepped(self, seconds: float) -> None:
        """One step was taken; the first of a process is slower than all others."""
        if not self._is_warm:
            self._is_warm = True
            return
        if self._step_seconds >= KNOWN_SECONDS:
            seconds = min(seconds, LONGEST_STEP * self._step_seconds / self._steps)
        fading = math.exp(-seconds / MEMORY_SECONDS)
        self._steps = self._steps * fading + 1
        self._step_seconds = self._step_seconds * fading + seconds
        self._snapshot_seconds *= fading

    def snapshot_taken(self, seconds: float) -> None:
        """Training waited so long for a snapshot."""
        self._snapshot_seconds += seconds

    def evaluated(self, seconds: float) -> None:
        """One evaluation took so long."""
        self._evaluation_seconds = seconds

    def seconds_left(self, steps: int, evaluations: int) -> float | None:
        """What so many steps and evaluations will take; None before that is known."""
        if self._step_seconds < KNOWN_SECONDS:
            return 0.0 if steps == evaluations == 0 else None
        per_step = (self._step_seconds + self._snapshot_seconds) / self._steps
        return steps * per_step + evaluations * (self._evaluation_seconds or 0.0)
