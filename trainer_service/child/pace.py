"""How long the rest of a training takes, by how fast it was lately."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

#: Seconds of steps that a speed is taken from.
WINDOW_SECONDS: Final = 30.0
#: Steps are counted together up to this, and the speed is known after as much.
STRETCH_SECONDS: Final = 1.0
#: Stretches that count at least, however long they are.
LEAST_STRETCHES: Final = 3
#: A step that is longer than the window and so many usual ones is a pause: the machine slept.
PAUSE_STEPS: Final = 10.0


@dataclass
class _Stretch:
    """Steps that follow each other, and what training waited for snapshots among them."""

    steps: int = 0
    seconds: float = 0.0
    snapshot_seconds: float = 0.0


class Pace:
    """The speed of one training process.

    Steps are timed by themselves: what lies between them (a snapshot, an evaluation, the time
    before the first step) is no part of theirs. Snapshots and evaluations that are still to come
    are counted in as they were lately.
    """

    def __init__(self) -> None:
        self._stretches: deque[_Stretch] = deque([_Stretch()])
        #: All of them together.
        self._window = _Stretch()
        self._is_warm = False
        self._paused = False
        #: Of the last evaluation; 0 before the first.
        self._evaluation_seconds = 0.0

    def stepped(self, seconds: float) -> None:
        """One step was taken; the first of a process is slower than all others."""
        if not self._is_warm:
            self._is_warm = True
            return
        if self._is_pause(seconds):
            return
        stretch = self._stretches[-1]
        if stretch.seconds >= STRETCH_SECONDS:
            stretch = _Stretch()
            self._stretches.append(stretch)
        for counted in (stretch, self._window):
            counted.steps += 1
            counted.seconds += seconds
        while (
            len(self._stretches) > LEAST_STRETCHES
            and self._window.seconds - self._stretches[0].seconds >= WINDOW_SECONDS
        ):
            oldest = self._stretches.popleft()
            self._window.steps -= oldest.steps
            self._window.seconds -= oldest.seconds
            self._window.snapshot_seconds -= oldest.snapshot_seconds

    def snapshot_taken(self, seconds: float) -> None:
        """Training waited so long for a snapshot."""
        for counted in (self._stretches[-1], self._window):
            counted.snapshot_seconds += seconds

    def evaluated(self, seconds: float) -> None:
        """One evaluation took so long."""
        self._evaluation_seconds = seconds

    def seconds_left(self, steps: int, evaluations: int) -> float | None:
        """What so many steps and evaluations will take; None before that is known."""
        if steps == evaluations == 0:
            return 0.0
        window = self._window
        if window.seconds < STRETCH_SECONDS:
            return None
        per_step = (window.seconds + window.snapshot_seconds) / window.steps
        return steps * per_step + evaluations * self._evaluation_seconds

    def _is_pause(self, seconds: float) -> bool:
        """Whether a step is left out; two that are as long are no pauses but the speed."""
        window = self._window
        usual = window.seconds / window.steps if window.steps else seconds
        is_long = seconds > max(WINDOW_SECONDS, PAUSE_STEPS * usual)
        self._paused = is_long and not self._paused
        return self._paused
