"""Stops a training that no longer gets better."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_service.child.history import is_better


@dataclass
class EarlyStopping:
    """Counts the epochs since the monitored metric last improved.

    Everything here but the rule itself is part of a checkpoint.
    """

    monitor: str
    #: Epochs without an improvement before training stops; None: never.
    patience: int | None
    #: The least change that counts.
    min_delta: float = 0.0
    best_value: float | None = None
    epochs_without_improvement: int = 0
    stopped: bool = False
    reason: str = ""

    def observe(self, value: float, epoch: int) -> None:
        """Takes note of an epoch's value; sets `stopped` when patience has ended."""
        if self.patience is None:
            return
        if is_better(self.monitor, value, self.best_value, self.min_delta):
            self.best_value = value
            self.epochs_without_improvement = 0
            return
        self.epochs_without_improvement += 1
        if self.epochs_without_improvement >= self.patience:
            self.stopped = True
            self.reason = (
                f"{self.monitor} has not improved for {self.patience} epochs (last: epoch {epoch})"
            )
