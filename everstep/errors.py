"""What can go wrong, each with the reason that callers match on.

A reason maps to one gRPC status, in `STATUS_OF_REASON` and nowhere else. Every message
is one line and says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

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
    Reason.TRAINER_RESTARTED: "ABORTED",
    Reason.ATTEMPTS_EXHAUSTED: "ABORTED",
    Reason.CHECKPOINT_CORRUPT: "DATA_LOSS",
    Reason.NO_CAPACITY: "RESOURCE_EXHAUSTED",
    Reason.OUT_OF_MEMORY: "RESOURCE_EXHAUSTED",
    Reason.STORE_FULL: "RESOURCE_EXHAUSTED",
    Reason.STORE_UNAVAILABLE: "UNAVAILABLE",
    Reason.DATABASE_UNAVAILABLE: "UNAVAILABLE",
    Reason.DRAINING: "UNAVAILABLE",
    Reason.SERVICE_UNAVAILABLE: "UNAVAILABLE",
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
    """An error with a reason.

    Args:
        reason: What callers match on.
        message: One line that says what to do next.
        violations: The fields that were refused, if any.
        metadata: Names and values that callers may use, such as `checkpoint_id`.
    """

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

    @property
    def status(self) -> str:
        """The name of the gRPC status, as in `NOT_FOUND`."""
        return STATUS_OF_REASON[self.reason]
