"""What can go wrong, each with the reason that callers match on.

A reason maps to one gRPC status, in `STATUS_OF_REASON` and nowhere else, and to one class of
exceptions, in `CLASS_OF_REASON`. Every message is one line and says what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Self

#: The domain of every ErrorInfo (AIP-193).
ERROR_DOMAIN = "everstep.dev"


class Reason(StrEnum):
    """The machine-readable reason of an error; never renamed."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_STRATEGY = "INVALID_STRATEGY"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    FUTURE_SEQUENCE = "FUTURE_SEQUENCE"
    HISTORY_COMPACTED = "HISTORY_COMPACTED"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    CHECKPOINT_NOT_FOUND = "CHECKPOINT_NOT_FOUND"
    TRAINER_NOT_FOUND = "TRAINER_NOT_FOUND"
    TRAINING_NOT_FOUND = "TRAINING_NOT_FOUND"
    BLOB_NOT_FOUND = "BLOB_NOT_FOUND"
    NO_CHECKPOINT = "NO_CHECKPOINT"
    ALREADY_RUNNING = "ALREADY_RUNNING"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    ALREADY_FINISHED = "ALREADY_FINISHED"
    OPERATION_CANCELLED = "OPERATION_CANCELLED"
    NOT_RUNNING = "NOT_RUNNING"
    NOT_FINISHED = "NOT_FINISHED"
    CHECKPOINT_PINNED = "CHECKPOINT_PINNED"
    CHECKPOINT_IN_USE = "CHECKPOINT_IN_USE"
    PART_MISSING = "PART_MISSING"
    ENVIRONMENT_MISMATCH = "ENVIRONMENT_MISMATCH"
    RESUME_CONFLICT = "RESUME_CONFLICT"
    ATTEMPT_REPLACED = "ATTEMPT_REPLACED"
    CHECKPOINT_CORRUPT = "CHECKPOINT_CORRUPT"
    NO_CAPACITY = "NO_CAPACITY"
    QUEUE_FULL = "QUEUE_FULL"
    TOO_MANY_WATCHES = "TOO_MANY_WATCHES"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    STORE_FULL = "STORE_FULL"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STORE_ACCESS_DENIED = "STORE_ACCESS_DENIED"
    STORE_MISCONFIGURED = "STORE_MISCONFIGURED"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    DRAINING = "DRAINING"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CALL_CANCELLED = "CALL_CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    ADDRESS_IN_USE = "ADDRESS_IN_USE"
    ORIGIN_REFUSED = "ORIGIN_REFUSED"
    NON_FINITE_LOSS = "NON_FINITE_LOSS"
    TRAINING_FAILED = "TRAINING_FAILED"
    TRAINING_PROCESS_DIED = "TRAINING_PROCESS_DIED"
    TRAINING_HUNG = "TRAINING_HUNG"
    TRAINER_RESTARTED = "TRAINER_RESTARTED"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    INTERNAL = "INTERNAL"


#: The name of the grpc.StatusCode of each reason.
STATUS_OF_REASON: Mapping[Reason, str] = {
    Reason.INVALID_REQUEST: "INVALID_ARGUMENT",
    Reason.INVALID_STRATEGY: "INVALID_ARGUMENT",
    Reason.REQUEST_ID_REUSED: "INVALID_ARGUMENT",
    Reason.MESSAGE_TOO_LARGE: "RESOURCE_EXHAUSTED",
    Reason.FUTURE_SEQUENCE: "OUT_OF_RANGE",
    Reason.HISTORY_COMPACTED: "OUT_OF_RANGE",
    Reason.OPERATION_NOT_FOUND: "NOT_FOUND",
    Reason.CHECKPOINT_NOT_FOUND: "NOT_FOUND",
    Reason.TRAINER_NOT_FOUND: "NOT_FOUND",
    Reason.TRAINING_NOT_FOUND: "NOT_FOUND",
    Reason.BLOB_NOT_FOUND: "NOT_FOUND",
    Reason.NO_CHECKPOINT: "FAILED_PRECONDITION",
    Reason.ALREADY_RUNNING: "FAILED_PRECONDITION",
    Reason.ALREADY_COMPLETED: "FAILED_PRECONDITION",
    Reason.ALREADY_FINISHED: "FAILED_PRECONDITION",
    Reason.NOT_RUNNING: "FAILED_PRECONDITION",
    Reason.NOT_FINISHED: "FAILED_PRECONDITION",
    Reason.CHECKPOINT_PINNED: "FAILED_PRECONDITION",
    Reason.CHECKPOINT_IN_USE: "FAILED_PRECONDITION",
    Reason.PART_MISSING: "FAILED_PRECONDITION",
    Reason.ENVIRONMENT_MISMATCH: "FAILED_PRECONDITION",
    Reason.STORE_ACCESS_DENIED: "FAILED_PRECONDITION",
    Reason.STORE_MISCONFIGURED: "FAILED_PRECONDITION",
    Reason.NON_FINITE_LOSS: "FAILED_PRECONDITION",
    Reason.TRAINING_FAILED: "FAILED_PRECONDITION",
    Reason.RESUME_CONFLICT: "ABORTED",
    Reason.ATTEMPT_REPLACED: "ABORTED",
    Reason.TRAINING_PROCESS_DIED: "ABORTED",
    Reason.TRAINING_HUNG: "ABORTED",
    Reason.TRAINER_RESTARTED: "ABORTED",
    Reason.ATTEMPTS_EXHAUSTED: "ABORTED",
    Reason.CHECKPOINT_CORRUPT: "DATA_LOSS",
    Reason.NO_CAPACITY: "RESOURCE_EXHAUSTED",
    Reason.QUEUE_FULL: "RESOURCE_EXHAUSTED",
    Reason.TOO_MANY_WATCHES: "RESOURCE_EXHAUSTED",
    Reason.OUT_OF_MEMORY: "RESOURCE_EXHAUSTED",
    Reason.STORE_FULL: "RESOURCE_EXHAUSTED",
    Reason.STORE_UNAVAILABLE: "UNAVAILABLE",
    Reason.DATABASE_UNAVAILABLE: "UNAVAILABLE",
    Reason.DRAINING: "UNAVAILABLE",
    Reason.SERVICE_UNAVAILABLE: "UNAVAILABLE",
    Reason.OPERATION_CANCELLED: "CANCELLED",
    Reason.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    Reason.CALL_CANCELLED: "CANCELLED",
    Reason.UNIMPLEMENTED: "UNIMPLEMENTED",
    Reason.ADDRESS_IN_USE: "FAILED_PRECONDITION",
    Reason.ORIGIN_REFUSED: "PERMISSION_DENIED",
    Reason.INTERNAL: "INTERNAL",
}


@dataclass(frozen=True)
class FieldViolation:
    """One field that was refused."""

    #: As in `optimizer.args.lr`.
    field: str
    description: str


class EverstepError(Exception):
    """An error with a reason; it is of the reason's class, where `CLASS_OF_REASON` has one.

    So `EverstepError(Reason.NO_CHECKPOINT, ...)` is caught by `except NoCheckpoint`, as OSError
    with ENOENT is caught by `except FileNotFoundError`.

    Args:
        reason: What callers match on.
        message: One line that says what to do next.
        violations: The fields that were refused, if any.
        metadata: Names and values that callers may use, such as `checkpoint_id`.
    """

    def __new__(cls, reason: Reason, message: str, **_: Any) -> Self:
        of_reason = CLASS_OF_REASON.get(reason, cls)
        chosen = of_reason if issubclass(of_reason, cls) else cls
        return super(EverstepError, chosen).__new__(chosen, message)

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Callable[[], EverstepError], tuple[()]]:
        again = partial(
            type(self),
            self.reason,
            self.message,
            violations=self.violations,
            metadata=self.metadata,
        )
        return again, ()

    @property
    def status(self) -> str:
        """The name of the gRPC status, as in `NOT_FOUND`."""
        return STATUS_OF_REASON[self.reason]


class InvalidRequest(EverstepError):
    """An argument is refused; `violations` names the fields."""


class InvalidStrategy(InvalidRequest):
    """The strategy, or the data it names, is refused; `violations` names the fields."""


class NotFound(EverstepError):
    """There is no such thing, or no longer."""


class OperationNotFound(NotFound):
    """There is no such operation."""


class CheckpointNotFound(NotFound):
    """There is no such checkpoint."""


class TrainerNotFound(NotFound):
    """No trainer has registered under this name."""


class WrongState(EverstepError):
    """The operation or the checkpoint is in a state in which this cannot be done."""


class NoCheckpoint(WrongState):
    """There is no checkpoint to go on from."""


class AlreadyRunning(WrongState):
    """The operation is queued or running."""


class AlreadyCompleted(WrongState):
    """The operation has done all its epochs; more may be asked for."""


class AlreadyFinished(WrongState):
    """The operation has ended."""


class NotRunning(WrongState):
    """The operation does not run, so it takes no checkpoint."""


class NotFinished(WrongState):
    """The operation still runs; cancel it first."""


class CheckpointInUse(WrongState):
    """The checkpoint is pinned, or a running operation may go on from it."""


class PartMissing(WrongState):
    """The checkpoint has no such part, such as best weights before the first evaluation."""


class ResumeConflict(EverstepError):
    """Another caller has resumed the operation first."""


class EnvironmentMismatch(EverstepError):
    """Other bytes would come out on this trainer; `allow_inexact` allows and marks it."""


class CheckpointCorrupt(EverstepError):
    """Stored bytes are not those that were written."""

    @property
    def newest_good_checkpoint_id(self) -> str:
        """One to go on from instead; empty when none is known."""
        return self.metadata.get("newest_good_checkpoint_id", "")


class FutureSequence(EverstepError):
    """`after` is ahead of the log."""

    @property
    def last_sequence(self) -> int:
        """The newest sequence in the log."""
        return int(self.metadata.get("last_sequence", 0))


class HistoryCompacted(EverstepError):
    """What follows `after` is not kept any more; `events(after=first_sequence - 1)` goes on."""

    @property
    def first_sequence(self) -> int:
        """The oldest sequence that is still in the log."""
        return int(self.metadata.get("first_sequence", 1))


class NoCapacity(EverstepError):
    """The trainer is full."""


class Unavailable(EverstepError):
    """Something cannot be reached for a while; the same call may go well later."""


class ServiceUnavailable(Unavailable):
    """No control plane answers at the address, or it is about to stop."""


class StoreUnavailable(Unavailable):
    """The object store does not answer."""


class DeadlineExceeded(EverstepError, TimeoutError):
    """It took longer than it was given; what was asked goes on."""


class OperationCancelled(EverstepError):
    """The operation was cancelled, so it has no result."""

    @property
    def checkpoint_id(self) -> str:
        """Its newest checkpoint, from which it can be resumed; empty when there is none."""
        return self.metadata.get("checkpoint_id", "")


class TrainingFailed(EverstepError):
    """The training failed; `reason` is why.

    Where that reason has a class of its own, such as EnvironmentMismatch, `__cause__` is of it.
    """

    @property
    def detail(self) -> str:
        """The traceback in the training process; empty where there is none."""
        return self.metadata.get("detail", "")

    @property
    def checkpoint_id(self) -> str:
        """Its newest checkpoint, from which it can be resumed; empty when there is none."""
        return self.metadata.get("checkpoint_id", "")


class NonFiniteLoss(TrainingFailed):
    """The loss became NaN or infinite."""


class OutOfMemory(TrainingFailed):
    """There is no memory for the data, the model or its snapshots."""


class TrainingProcessDied(TrainingFailed):
    """The training process died more often than is allowed."""


class TrainingHung(TrainingFailed):
    """The training made no step for too long, again and again; `detail` has its stacks."""


class AttemptsExhausted(TrainingFailed):
    """Too many attempts in a row were lost."""


#: The class of each reason that has one of its own; of the others it is EverstepError.
CLASS_OF_REASON: Mapping[Reason, type[EverstepError]] = {
    Reason.INVALID_REQUEST: InvalidRequest,
    Reason.REQUEST_ID_REUSED: InvalidRequest,
    Reason.INVALID_STRATEGY: InvalidStrategy,
    Reason.OPERATION_NOT_FOUND: OperationNotFound,
    Reason.CHECKPOINT_NOT_FOUND: CheckpointNotFound,
    Reason.TRAINER_NOT_FOUND: TrainerNotFound,
    Reason.TRAINING_NOT_FOUND: NotFound,
    Reason.BLOB_NOT_FOUND: NotFound,
    Reason.NO_CHECKPOINT: NoCheckpoint,
    Reason.ALREADY_RUNNING: AlreadyRunning,
    Reason.ALREADY_COMPLETED: AlreadyCompleted,
    Reason.ALREADY_FINISHED: AlreadyFinished,
    Reason.NOT_RUNNING: NotRunning,
    Reason.NOT_FINISHED: NotFinished,
    Reason.CHECKPOINT_PINNED: CheckpointInUse,
    Reason.CHECKPOINT_IN_USE: CheckpointInUse,
    Reason.PART_MISSING: PartMissing,
    Reason.RESUME_CONFLICT: ResumeConflict,
    Reason.ENVIRONMENT_MISMATCH: EnvironmentMismatch,
    Reason.CHECKPOINT_CORRUPT: CheckpointCorrupt,
    Reason.FUTURE_SEQUENCE: FutureSequence,
    Reason.HISTORY_COMPACTED: HistoryCompacted,
    Reason.NO_CAPACITY: NoCapacity,
    Reason.SERVICE_UNAVAILABLE: ServiceUnavailable,
    Reason.DRAINING: ServiceUnavailable,
    Reason.DATABASE_UNAVAILABLE: ServiceUnavailable,
    Reason.STORE_UNAVAILABLE: StoreUnavailable,
    Reason.DEADLINE_EXCEEDED: DeadlineExceeded,
    Reason.OPERATION_CANCELLED: OperationCancelled,
    Reason.TRAINING_FAILED: TrainingFailed,
    Reason.NON_FINITE_LOSS: NonFiniteLoss,
    Reason.OUT_OF_MEMORY: OutOfMemory,
    Reason.TRAINING_PROCESS_DIED: TrainingProcessDied,
    Reason.TRAINING_HUNG: TrainingHung,
    Reason.ATTEMPTS_EXHAUSTED: AttemptsExhausted,
}
