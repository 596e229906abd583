"""When a checkpoint falls due, and when a snapshot for memory alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainer_service.child.pipe import MEMORY

#: Seconds between two snapshots for memory alone: a new process takes longer than that to start.
MIN_MEMORY_SECONDS: Final = 1.0


@dataclass(frozen=True)
class CheckpointPolicy:
    """Whichever comes first; 0 turns a trigger off."""

    every_steps: int = 0
    every_epochs: int = 1
    every_seconds: float = 0.0


class SnapshotCadence:
    """Says when which snapshot is taken.

    Args:
        policy: When one that becomes a checkpoint is.
        stall_budget: The share of the time that training may wait for those that are for memory
            alone; 0: there are none.
        now: Seconds on a monotonic clock, at the start.
    """

    def __init__(self, policy: CheckpointPolicy, stall_budget: float, now: float) -> None:
        self._policy = policy
        self._stall_budget = stall_budget
        self._last_checkpoint = self._last = now
        self._pause = MIN_MEMORY_SECONDS

    def due(self, step: int, epochs_done: int | None, now: float) -> str:
        """The trigger of the snapshot to take now; empty for none.

        Args:
            step: Optimizer steps done.
            epochs_done: At the end of an epoch, how many are done; None within one.
            now: Seconds on the monotonic clock.
        """
        policy = self._policy
        if (
            (policy.every_steps and step % policy.every_steps == 0)
            or (policy.every_epochs and epochs_done and epochs_done % policy.every_epochs == 0)
            or (policy.every_seconds and now - self._last_checkpoint >= policy.every_seconds)
        ):
            return "PERIODIC"
        return MEMORY if self._stall_budget and now - self._last >= self._pause else ""

    def taken(self, trigger: str, stall_seconds: float, now: float) -> None:
        """A snapshot was taken, and training waited so long for it."""
        self._last = now
        if trigger != MEMORY:
            self._last_checkpoint = now
        if self._stall_budget:
            self._pause = max(MIN_MEMORY_SECONDS, stall_seconds / self._stall_budget)
