"""When a periodic checkpoint falls due."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointPolicy:
    """Whichever comes first; 0 turns a trigger off."""

    every_steps: int = 0
    every_epochs: int = 1
    every_seconds: float = 0.0


class CheckpointCadence:
    """Keeps a checkpoint due from when it falls due until it is taken.

    Args:
        policy: When.
        now: Seconds on a monotonic clock, at the start.
    """

    def __init__(self, policy: CheckpointPolicy, now: float) -> None:
        self._policy = policy
        self._last = now
        self._due = False
        #: Whether the one that is due was already reported as late.
        self.delayed = False

    def due(self, step: int, epochs_done: int | None, now: float) -> bool:
        """Whether to take one now.

        Args:
            step: Optimizer steps done.
            epochs_done: At the end of an epoch, how many are done; None within one.
            now: Seconds on the monotonic clock.
        """
        policy = self._policy
        if policy.every_steps and step % policy.every_steps == 0:
            self._due = True
        if policy.every_epochs and epochs_done and epochs_done % policy.every_epochs == 0:
            self._due = True
        if policy.every_seconds and now - self._last >= policy.every_seconds:
            self._due = True
        return self._due

    def taken(self, now: float) -> None:
        """A checkpoint, of whatever trigger, was taken."""
        self._last = now
        self._due = False
        self.delayed = False
