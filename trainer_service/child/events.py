"""What a training says on its way, and what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Position:
    """How far a training is."""

    #: From 0; equals total_epochs when all are done.
    epoch: int
    total_epochs: int
    #: Batches done in this epoch.
    batch: int
    batches_per_epoch: int
    #: Optimizer steps done.
    step: int
    total_steps: int
    #: None until the speed is known.
    eta_seconds: float | None = None


@dataclass(frozen=True)
class PhaseChanged:
    """As in the contract's Phase, without its prefix: TRAINING, EVALUATING, FINISHING."""

    phase: str


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step."""

    loss: float
    learning_rate: float
    examples_per_second: float
    #: Before clipping.
    gradient_norm: float


@dataclass(frozen=True)
class EpochCompleted:
    """One epoch, its evaluation included."""

    epoch: int
    metrics: dict[str, float]
    learning_rate: float
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class CheckpointDelayed:
    """A checkpoint fell due and was replaced by a newer one, before its way to the store."""

    step: int
    message: str


@dataclass(frozen=True)
class StepSkipped:
    """A step was left out, for its loss or gradient was not finite."""

    message: str


@dataclass(frozen=True)
class RolledBack:
    """The training goes on from an earlier step, and leaves out those that went wrong."""

    from_step: int
    message: str


Event = PhaseChanged | StepMetrics | EpochCompleted | CheckpointDelayed | StepSkipped | RolledBack
ProgressCallback = Callable[[Position, Event], None]


class Stop(StrEnum):
    """Why a training is to stop before its end."""

    CANCEL = "cancel"
    #: Without a checkpoint.
    DISCARD = "discard"
    #: With a checkpoint, for another trainer to go on.
    SHUTDOWN = "shutdown"


class TrainingStopped(Exception):
    """The training was told to stop, and has."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.value)
        self.stop = stop


class RollbackWanted(Exception):
    """A loss, a gradient or a metric was not finite, and the strategy wants an earlier state."""

    def __init__(self, position: Position, step: int, message: str) -> None:
        super().__init__(message)
        self.position = position
        #: The step that went wrong, counted from 1.
        self.step = step
        self.message = message


class CancellationToken:
    """Set from any thread; the training looks at it after each step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Stop | None = None
        self._checkpoint_requested = False

    @property
    def stop(self) -> Stop | None:
        """Why to stop; None to go on."""
        return self._stop

    def request_stop(self, stop: Stop) -> None:
        """Asks to stop after the current step; a discard wins over what was asked before."""
        with self._lock:
            if self._stop is None or stop is Stop.DISCARD:
                self._stop = stop

    def request_checkpoint(self) -> None:
        """Asks for a checkpoint after the current step."""
        with self._lock:
            self._checkpoint_requested = True

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        with self._lock:
            requested, self._checkpoint_requested = self._checkpoint_requested, False
            return requested
