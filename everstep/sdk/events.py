"""The events of an operation's log, one class for each kind.

Made for `match`: what a kind has of its own stands first, what all have is named.

    match event:
        case EpochCompleted(epoch, metrics):
            print(epoch, metrics["val_loss"])
        case Failed(failure):
            print(failure.message)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from everstep.sdk.checkpoints import Checkpoint, CheckpointTrigger
from everstep.sdk.operations import (
    Failure,
    OperationState,
    Phase,
    Position,
    TrainingResult,
    WorkAtRisk,
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of an operation's log, or (sequence 0) a word of how it goes that is not kept."""

    operation_id: str
    #: From 1 without a gap; 0 for a transient event.
    sequence: int
    time: datetime
    #: 0 for what belongs to none.
    attempt: int
    #: None for what the control plane said.
    position: Position | None = None
    at_risk: WorkAtRisk | None = None

    @property
    def is_durable(self) -> bool:
        """It is in the log, and every watcher gets it."""
        return self.sequence > 0


@dataclass(frozen=True, kw_only=True)
class TrainingEvent(Event):
    """One that the trainer said of an attempt: it has a position."""

    position: Position


@dataclass(frozen=True)
class StateChanged(Event):
    """The operation goes from one state to another."""

    to: OperationState
    #: UNKNOWN for the first.
    before: OperationState
    #: CREATED, DISPATCHED, ATTEMPT_LOST, CANCEL_REQUESTED, ...
    reason: str
    message: str


@dataclass(frozen=True)
class PhaseChanged(TrainingEvent):
    """The training does something else."""

    phase: Phase
    #: The process that trains; 0 before there is one.
    process_id: int


@dataclass(frozen=True)
class PhaseProgress(TrainingEvent):
    """Transient: how far a phase is that moves a state."""

    phase: Phase
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class StepMetrics(TrainingEvent):
    """One step's; a sample of them is durable."""

    loss: float
    learning_rate: float
    examples_per_second: float
    #: The norm of all gradients, before clipping.
    gradient_norm: float | None


@dataclass(frozen=True)
class EpochCompleted(TrainingEvent):
    """An epoch is done and evaluated."""

    #: Counted from 0.
    epoch: int
    metrics: Mapping[str, float]
    #: At the end of the epoch, as the optimizer will use it next.
    learning_rate: float
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class CheckpointCommitted(TrainingEvent):
    """A checkpoint is in the store, complete and verified."""

    checkpoint: Checkpoint
    #: How long training waited, and how long the way to the store took.
    stall_seconds: float
    upload_seconds: float


@dataclass(frozen=True)
class CheckpointDelayed(TrainingEvent):
    """A checkpoint fell due and was not taken, or could not be stored; training goes on."""

    trigger: CheckpointTrigger
    step: int
    #: UPLOAD_IN_FLIGHT, STORE_UNAVAILABLE, ...
    reason: str
    message: str


@dataclass(frozen=True)
class TrainingRestarted(TrainingEvent):
    """The training process died and another one goes on."""

    #: As in `signal SIGSEGV`, `exit code 1`, `out of memory`, `hung: no step for 300 s`.
    cause: str
    from_step: int
    #: Where the state came from: memory, checkpoint or beginning.
    source: str
    restart: int


@dataclass(frozen=True)
class TrainingWarning(TrainingEvent):
    """Something in the training that a person should know."""

    reason: str
    message: str
    #: Of a training that hung, where each of its threads was.
    detail: str


@dataclass(frozen=True)
class Note(Event):
    """Something beside the training that a person should know."""

    reason: str
    message: str


@dataclass(frozen=True)
class Completed(TrainingEvent):
    """An attempt has come to the training's end."""

    result: TrainingResult


@dataclass(frozen=True)
class Failed(TrainingEvent):
    """An attempt has failed."""

    failure: Failure
    #: The last whole step's state, where it could be saved.
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class Cancelled(TrainingEvent):
    """An attempt was stopped."""

    #: None when it was discarded or had not begun.
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class UnknownEvent(Event):
    """Of a kind that this version does not know."""
