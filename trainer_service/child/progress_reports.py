"""ProgressReports: what a training says on its way, each time with its position."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from trainer_service.child.events import Position, ProgressCallback, StepMetrics
from trainer_service.child.model_trainer_config import ModelTrainerConfig
from trainer_service.child.pace import Pace
from trainer_service.child.training_state import TrainingState

#: Seconds between two reports of step metrics.
STEP_REPORT_SECONDS: Final = 0.1


class ProgressReports:
    """Says events with the position of a training's state, and how long the rest will take.

    Args:
        state: Whose position is said.
        config: How many epochs there are, and how many batches a step takes.
        callback: Called with every event.
    """

    def __init__(
        self, state: TrainingState, config: ModelTrainerConfig, callback: ProgressCallback | None
    ) -> None:
        self._state = state
        self._config = config
        self._callback = callback or (lambda _position, _event: None)
        self._said = -math.inf
        #: Told how long each thing took.
        self.pace = Pace()
        #: Of an epoch; 0 until the examples are known.
        self.batches = 0

    def say(self, event: Any) -> None:
        """Says an event."""
        self._callback(self.position(), event)

    def stepped(self, loss: float, norm: float, examples: int, seconds: float) -> None:
        """A step was taken, of so many examples; its metrics are said if none were a moment ago."""
        self.pace.stepped(seconds)
        now = time.monotonic()
        if now - self._said < STEP_REPORT_SECONDS:
            return
        self._said = now
        rate = float(self._state.optimizer.param_groups[0]["lr"])
        self.say(StepMetrics(loss, rate, examples / max(seconds, 1e-9), norm))

    def position(self) -> Position:
        """How far the training is."""
        state, epochs = self._state, self._config.epochs
        total = -(-self.batches // self._config.accumulate) * epochs
        # At the end of each epoch there is one.
        evaluations = max(0, epochs - state.epoch)
        return Position(
            epoch=state.epoch,
            total_epochs=epochs,
            batch=state.batch,
            batches_per_epoch=self.batches,
            step=state.step,
            total_steps=total,
            eta_seconds=self.pace.seconds_left(max(0, total - state.step), evaluations),
        )
