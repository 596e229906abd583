"""What a loss would cost a training now, and whether its checkpoints keep up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from everstep.training.v1 import progress_pb2
from everstep.training.v1.progress_pb2 import Phase, TrainingProgress
from everstep.training.v1.strategy_pb2 import CheckpointPolicy
from trainer_service.child.pipe import MEMORY, SnapshotTaken

#: Checkpoints are behind when the newest is so many times older than the policy asks for.
BEHIND_TIMES: Final = 3
#: And at least so many seconds old: less work than that is not worth a word.
BEHIND_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Saved:
    """A state that is somewhere."""

    #: Optimizer steps that are in it.
    step: int
    #: When training went on after it, on the clock.
    time: float


class RiskMeter:
    """Measures the work at risk of one attempt.

    Args:
        policy: When checkpoints are asked for.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, policy: CheckpointPolicy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy or CheckpointPolicy()
        self._clock = clock
        self._position = progress_pb2.TrainingPosition()
        #: Where the attempt began; None before it did.
        self._beginning: Saved | None = None
        self._has_stepped = False
        #: What each slot holds.
        self._slots: dict[int, Saved] = {}
        self._snapshot: Saved | None = None
        self._checkpoint: Saved | None = None
        self._uploading: Saved | None = None
        self._stall_seconds = 0.0
        #: Whether a snapshot that was to become a checkpoint came after the newest checkpoint.
        self._is_due = False
        self._has_warned = False

    def heard(self, word: TrainingProgress) -> None:
        """A word of the attempt, with its position."""
        self._position = word.position
        if self._beginning is None and word.phase_changed.phase == Phase.PHASE_TRAINING:
            beginning = Saved(word.position.step, self._clock())
            self._beginning = self._snapshot = self._checkpoint = beginning
        elif self._beginning is not None and word.position.step > self._beginning.step:
            self._has_stepped = True

    def snapshot_taken(self, snapshot: SnapshotTaken) -> None:
        """A slot holds a complete snapshot."""
        self._snapshot = self._slots[snapshot.content.slot] = Saved(snapshot.step, self._clock())
        self._stall_seconds += snapshot.stall_seconds
        self._is_due = self._is_due or snapshot.trigger != MEMORY

    def upload_begun(self, snapshot: SnapshotTaken) -> None:
        """A snapshot is on its way to the store."""
        self._uploading = self._slots.get(snapshot.content.slot)

    def upload_ended(self, committed: bool) -> None:
        """The snapshot on its way is a checkpoint, or given up."""
        uploaded, self._uploading = self._uploading, None
        if not committed or uploaded is None:
            return
        if not self._is_behind():
            self._has_warned = False
        self._checkpoint = uploaded
        self._is_due = self._snapshot is not None and self._snapshot.step > uploaded.step

    def measure(self) -> progress_pb2.WorkAtRisk | None:
        """As it is now; None before the first step."""
        if not self._has_stepped or self._beginning is None:
            return None
        now = self._clock()
        return progress_pb2.WorkAtRisk(
            steps_since_checkpoint=self._steps_since(self._checkpoint),
            seconds_since_checkpoint=_seconds_since(self._checkpoint, now),
            steps_since_snapshot=self._steps_since(self._snapshot),
            seconds_since_snapshot=_seconds_since(self._snapshot, now),
            upload_lag_seconds=_seconds_since(self._uploading, now),
            stall_share=min(1.0, self._stall_seconds / max(now - self._beginning.time, 1e-9)),
        )

    def warning(self) -> progress_pb2.Warning | None:
        """CHECKPOINTS_BEHIND, once; again only after a checkpoint that was not behind."""
        if self._has_warned or not self._is_due or not self._is_behind():
            return None
        self._has_warned = True
        steps = self._steps_since(self._checkpoint)
        seconds = _seconds_since(self._checkpoint, self._clock())
        return progress_pb2.Warning(
            reason="CHECKPOINTS_BEHIND",
            message=f"{steps} steps and {seconds:.0f} s are not in the store yet, more than "
            f"{BEHIND_TIMES} times what the checkpoint policy asks for; look whether the store is "
            "away or slow, or ask for checkpoints less often (checkpoint.every_steps, "
            "every_epochs, every_seconds)",
        )

    def _is_behind(self) -> bool:
        seconds = _seconds_since(self._checkpoint, self._clock())
        if seconds < BEHIND_SECONDS:
            return False
        wanted_steps, wanted_seconds = self._interval_steps(), self._policy.every_seconds
        return bool(
            (wanted_steps and self._steps_since(self._checkpoint) > BEHIND_TIMES * wanted_steps)
            or (wanted_seconds and seconds > BEHIND_TIMES * wanted_seconds)
        )

    def _interval_steps(self) -> float:
        """The steps between two checkpoints that the policy asks for; 0: it asks by time alone."""
        intervals = [float(self._policy.every_steps)]
        if self._position.total_epochs:
            steps_per_epoch = self._position.total_steps / self._position.total_epochs
            intervals.append(self._policy.every_epochs * steps_per_epoch)
        return min((interval for interval in intervals if interval), default=0.0)

    def _steps_since(self, saved: Saved | None) -> int:
        if saved is None:
            return 0
        # Not every step is told: the newest snapshot may be further.
        step = max(self._position.step, 0 if self._snapshot is None else self._snapshot.step)
        return max(0, step - saved.step)


def _seconds_since(saved: Saved | None, now: float) -> float:
    return 0.0 if saved is None else max(0.0, now - saved.time)
