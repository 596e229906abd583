"""Operations, their attempts and their results, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from everstep.errors import FieldViolation
from everstep.sdk.checkpoints import Checkpoint
from everstep.sdk.strategy import Strategy


class OperationState(StrEnum):
    """Where an operation stands."""

    PENDING = "pending"
    RUNNING = "running"
    #: It stops after its current step, with a checkpoint.
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: One that this version does not know.
    UNKNOWN = "unspecified"

    @property
    def is_final(self) -> bool:
        """Nothing more happens unless somebody resumes it."""
        return self in (self.COMPLETED, self.FAILED, self.CANCELLED)


class Phase(StrEnum):
    """What a training is doing."""

    #: A process is started, the data is loaded, the model is built.
    PREPARING = "preparing"
    #: A checkpoint is read back.
    RESTORING = "restoring"
    TRAINING = "training"
    #: The held-out data is evaluated.
    EVALUATING = "evaluating"
    #: The last checkpoint is on its way to the store.
    FINISHING = "finishing"
    #: One that this version does not know.
    UNKNOWN = "unspecified"


@dataclass(frozen=True)
class Position:
    """How far a training is."""

    #: Counted from 0; equals total_epochs when all are done.
    epoch: int
    total_epochs: int
    #: Batches done in this epoch.
    batch: int
    batches_per_epoch: int
    #: Optimizer steps done.
    step: int
    total_steps: int
    #: From 0 to 1; never goes back.
    fraction: float
    #: None until the speed is known.
    eta_seconds: float | None


@dataclass(frozen=True)
class WorkAtRisk:
    """What a loss would cost now, and whether checkpoints keep up."""

    #: Since the newest checkpoint: lost with the machine.
    steps_since_checkpoint: int
    seconds_since_checkpoint: float
    #: Since the newest snapshot in memory: done again when the training process dies.
    steps_since_snapshot: int
    seconds_since_snapshot: float
    #: The age of the snapshot that is on its way to the store; 0 when none is.
    upload_lag_seconds: float
    #: The share of the time since the first step that training waited for snapshots.
    stall_share: float


class LivenessState(StrEnum):
    """What is heard of an attempt that runs."""

    #: Trainer and training are heard.
    HEARD = "heard"
    #: The trainer is there, and its training says nothing.
    STALLED = "stalled"
    #: The trainer's heartbeat comes, and its stream does not.
    UNREACHABLE = "unreachable"
    #: The trainer's lease has ended.
    DEAD = "dead"
    #: One that this version does not know.
    UNKNOWN = "unspecified"


@dataclass(frozen=True)
class Liveness:
    """What is heard of an attempt that runs, since when, and what comes of it."""

    state: LivenessState
    #: None while all is well.
    since: datetime | None
    #: One line; empty while all is well.
    message: str


@dataclass(frozen=True)
class Failure:
    """Why a training failed."""

    #: A Reason, as in `NON_FINITE_LOSS`.
    reason: str
    #: One line that says what to do next.
    message: str
    violations: tuple[FieldViolation, ...]
    #: The traceback in the training process.
    detail: str
    #: Whether another attempt may go better: the training itself is not at fault.
    restartable: bool


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a completed training."""

    epochs: int
    steps: int
    stopped_early: bool
    stop_reason: str
    #: Of the last epoch, and of the held-out test data (test_*).
    metrics: Mapping[str, float]
    #: The metric that decides which epoch is the best, and that epoch, counted from 0.
    monitor: str
    best_value: float | None
    best_epoch: int | None
    #: BLAKE3 in hexadecimal, by kind (weights, optimizer, ...) and of all (state).
    digests: Mapping[str, str]
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class Attempt:
    """One run of an operation on one trainer."""

    number: int
    trainer_id: str
    started: datetime
    ended: datetime | None
    first_step: int
    last_step: int
    #: COMPLETED, FAILED, CANCELLED, LOST, HANDED_OVER or REFUSED; empty while it runs.
    end: str
    end_reason: str
    #: The process that trains, as last reported; 0 before there is one.
    process_id: int


@dataclass(frozen=True)
class Operation:
    """One training, from creation to its final state, as it stood when it was asked for."""

    id: str
    name: str
    state: OperationState
    strategy: Strategy
    strategy_digest: str
    labels: Mapping[str, str]
    created: datetime
    updated: datetime
    ended: datetime | None
    position: Position
    #: The newest step's, and the last completed epoch's.
    metrics: Mapping[str, float]
    #: Once it has completed.
    result: TrainingResult | None
    #: Once it has failed.
    failure: Failure | None
    attempts: tuple[Attempt, ...]
    #: The oldest and the newest sequence in its log.
    first_sequence: int
    last_sequence: int
    latest_checkpoint: Checkpoint | None
    resumable: bool
    #: The operation and the checkpoint that it was forked from; else empty.
    parent_id: str
    from_checkpoint_id: str
    #: Why a pending one waits, in one line.
    waiting_for: str
    #: As last heard; None when no attempt runs.
    at_risk: WorkAtRisk | None
    #: From -100 to 100; higher runs first, a point is worth an hour of waiting.
    priority: int
    #: It runs only on a trainer that has all of these.
    trainer_labels: Mapping[str, str]
    #: None when no attempt runs.
    liveness: Liveness | None


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training, as it was trained last."""

    #: Counted from 0.
    epoch: int
    metrics: Mapping[str, float]
    #: At the end of the epoch, as the optimizer will use it next.
    learning_rate: float
    is_best: bool
    seconds: float
    #: Optimizer steps done at its end.
    step: int
    attempt: int
    time: datetime
