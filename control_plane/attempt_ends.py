"""How an attempt ends, and what becomes of its operation: done, queued again, or failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection

from control_plane import times
from control_plane.database import attempts, checkpoints, events
from control_plane.database.attempts import AttemptRecord
from control_plane.database.checkpoints import CheckpointRecord
from control_plane.database.operations import OperationRecord
from control_plane.states import Change, State
from control_plane.transitions import change_state, note_event
from everstep.control.v1.operations_pb2 import RestartPolicy
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.progress_pb2 import (
    FieldViolation,
    TrainingError,
    TrainingPosition,
    TrainingProgress,
)

#: The backoff doubles up to this.
MAX_BACKOFF_SECONDS: Final = 300.0

#: The checkpoint cannot be read: an older one may.
_UNREADABLE: Final = frozenset({Reason.CHECKPOINT_CORRUPT, Reason.CHECKPOINT_NOT_FOUND})
#: Of a status: the trainer may be asked again, or another one; the training is not at fault.
_TRAINER_AT_FAULT: Final = frozenset(
    {
        Reason.TRAINING_NOT_FOUND,
        Reason.TRAINER_NOT_FOUND,
        Reason.TRAINER_RESTARTED,
        Reason.ATTEMPT_REPLACED,
        Reason.STORE_UNAVAILABLE,
        Reason.SERVICE_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.INTERNAL,
        Reason.UNIMPLEMENTED,
        Reason.CALL_CANCELLED,
        Reason.CHECKPOINT_CORRUPT,
        Reason.CHECKPOINT_NOT_FOUND,
        Reason.DRAINING,
        Reason.NO_CAPACITY,
    }
)


class AttemptEnd(StrEnum):
    """How an attempt ended, in the contract's words."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"
    HANDED_OVER = "HANDED_OVER"
    REFUSED = "REFUSED"


@dataclass(frozen=True)
class Ending:
    """What an end changes."""

    end: AttemptEnd
    end_reason: str
    change: Change
    message: str
    values: dict[str, Any]


def training_error(error: EverstepError) -> TrainingError:
    """The error of a call, as an operation keeps it."""
    return TrainingError(
        reason=error.reason.value,
        message=error.message,
        violations=[
            FieldViolation(field=violation.field, description=violation.description)
            for violation in error.violations
        ],
        restartable=error.reason in _TRAINER_AT_FAULT,
    )


def end_by_word(
    connection: Connection,
    operation: OperationRecord,
    attempt: AttemptRecord,
    word: TrainingProgress,
) -> None:
    """Ends an attempt with its own last word: Completed, Failed or Cancelled."""
    if word.HasField("completed"):
        result = word.completed.result
        message = result.stop_reason or f"{result.epochs} epochs and {result.steps} steps are done"
        ending = Ending(
            AttemptEnd.COMPLETED,
            "",
            Change.COMPLETED,
            message,
            {"result": result.SerializeToString(), "losses": 0},
        )
    elif word.HasField("cancelled"):
        ending = _cancelled("the training has stopped, as asked")
    else:
        ending = _ending_of_error(connection, operation, attempt, word.failed.error, answered=True)
    _close(connection, operation, attempt, ending)


def end_by_error(
    connection: Connection,
    operation: OperationRecord,
    attempt: AttemptRecord,
    error: EverstepError,
) -> None:
    """Ends an attempt that its trainer refused, lost, or went away with."""
    refused = error.reason in (Reason.NO_CAPACITY, Reason.DRAINING)
    if refused and operation.state != State.CANCELLING:
        ending = Ending(
            AttemptEnd.REFUSED,
            error.reason.value,
            Change.REFUSED,
            error.message,
            {"waiting_for": f"trainer {attempt.trainer_id} did not take it: {error.message}"},
        )
    else:
        ending = _ending_of_error(
            connection, operation, attempt, training_error(error), answered=False
        )
    _close(connection, operation, attempt, ending)


def _close(
    connection: Connection, operation: OperationRecord, attempt: AttemptRecord, ending: Ending
) -> None:
    attempts.set_values(
        connection,
        attempt.operation_id,
        attempt.number,
        ending=ending.end.value,
        end_reason=ending.end_reason,
        end_time=times.now(),
    )
    position = TrainingPosition.FromString(operation.position)
    # Nobody works on what is left.
    position.ClearField("eta_seconds")
    closed = {
        "owner": "",
        "owner_lease_time": 0,
        "at_risk": None,
        "position": position.SerializeToString(),
    }
    change_state(
        connection, operation, ending.change, ending.message, values={**closed, **ending.values}
    )


def _cancelled(message: str) -> Ending:
    return Ending(AttemptEnd.CANCELLED, "", Change.CANCELLED, message, {})


def _ending_of_error(
    connection: Connection,
    operation: OperationRecord,
    attempt: AttemptRecord,
    error: TrainingError,
    *,
    answered: bool,
) -> Ending:
    if error.reason in _UNREADABLE and attempt.checkpoint is not None and attempt.last_step == 0:
        return _unreadable_checkpoint(connection, operation, attempt, error)
    if not error.restartable:
        end = AttemptEnd.FAILED if answered else AttemptEnd.REFUSED
        return Ending(
            end,
            error.reason,
            Change.FAILED,
            error.message,
            {"error": error.SerializeToString()},
        )
    if operation.state == State.CANCELLING:
        return Ending(
            AttemptEnd.LOST if error.reason != Reason.DRAINING else AttemptEnd.HANDED_OVER,
            error.reason,
            Change.CANCELLED,
            f"cancelled; the attempt had ended by itself: {error.message}",
            {},
        )
    if error.reason == Reason.DRAINING:
        return Ending(
            AttemptEnd.HANDED_OVER,
            error.reason,
            Change.HANDED_OVER,
            f"trainer {attempt.trainer_id} hands it over; the next one goes on",
            # The trainer that keeps room for it does so until it is there.
            {"due_time": 0, "moving_to": operation.moving_to},
        )
    return _lost(connection, operation, attempt, error)


def _lost(
    connection: Connection, operation: OperationRecord, attempt: AttemptRecord, error: TrainingError
) -> Ending:
    policy = RestartPolicy.FromString(operation.restart_policy)
    losses = operation.losses + 1
    if losses >= policy.max_attempts:
        exhausted = TrainingError(
            reason=Reason.ATTEMPTS_EXHAUSTED,
            message=f"{losses} attempts in a row were lost, "
            f"{_first_loss(connection, attempt, losses, error)}the last one because: "
            f"{error.message}; look at the trainers' logs, then resume the operation",
            detail=error.detail,
        )
        return Ending(
            AttemptEnd.LOST,
            error.reason,
            Change.FAILED,
            exhausted.message,
            {"error": exhausted.SerializeToString(), "losses": losses},
        )
    backoff = min(policy.backoff_seconds * 2.0 ** min(losses - 1, 20), MAX_BACKOFF_SECONDS)
    return Ending(
        AttemptEnd.LOST,
        error.reason,
        Change.ATTEMPT_LOST,
        f"attempt {attempt.number} on {attempt.trainer_id} was lost: {error.message}",
        {
            "losses": losses,
            "due_time": times.after(backoff),
            "waiting_for": f"{backoff:g} s after attempt {attempt.number} was lost",
        },
    )


def _first_loss(
    connection: Connection, attempt: AttemptRecord, losses: int, error: TrainingError
) -> str:
    """Why the first attempt of a row was lost, where the last one had another reason."""
    known = attempts.of_operations(connection, [attempt.operation_id])[attempt.operation_id]
    lost = [one for one in known if one.ending == AttemptEnd.LOST and one.number < attempt.number]
    first = lost[-(losses - 1)] if 1 < losses <= len(lost) + 1 else attempt
    if first is attempt or first.end_reason == error.reason:
        return ""
    return f"the first one (attempt {first.number}) with {first.end_reason}, "


def _unreadable_checkpoint(
    connection: Connection, operation: OperationRecord, attempt: AttemptRecord, error: TrainingError
) -> Ending:
    """Goes on from the next older checkpoint; never from the beginning, and never silently."""
    assert attempt.checkpoint is not None
    damaged = CheckpointReference.FromString(attempt.checkpoint).checkpoint_id
    checkpoints.set_values(connection, damaged, damaged=True)
    if operation.state == State.CANCELLING:
        return _cancelled(f"cancelled; the attempt had not begun: {error.message}")
    older = next_readable(connection, operation.operation_id)
    named = operation.resume_named and operation.resume_checkpoint_id == damaged
    if older is None or named:
        offer = (
            ""
            if older is None
            else f"; the newest good checkpoint is {older.checkpoint_id}, resume from that one"
        )
        failure = TrainingError()
        failure.CopyFrom(error)
        failure.restartable = False
        failure.message = f"{error.message}{offer}"
        return Ending(
            AttemptEnd.FAILED,
            error.reason,
            Change.FAILED,
            failure.message,
            {"error": failure.SerializeToString()},
        )
    message = (
        f"checkpoint {damaged} cannot be read ({error.message}); going on from checkpoint "
        f"{older.checkpoint_id} at step {older.step}"
    )
    events.append(
        connection,
        operation.operation_id,
        [note_event("CHECKPOINT_SKIPPED", message, attempt.number)],
    )
    return Ending(
        AttemptEnd.FAILED,
        error.reason,
        Change.CHECKPOINT_SKIPPED,
        message,
        {"due_time": 0, "resume_checkpoint_id": None, "resume_named": False},
    )


def next_readable(connection: Connection, operation_id: str) -> CheckpointRecord | None:
    """The newest checkpoint of an operation that nobody found damaged."""
    return checkpoints.newest_of(connection, [operation_id]).get(operation_id)
