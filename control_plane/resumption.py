"""Whether an operation can be resumed, from which checkpoint, and with which changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from control_plane.attempt_ends import next_readable
from control_plane.checkpoint_records import checkpoint_not_found
from control_plane.database import checkpoints
from control_plane.database.checkpoints import CheckpointRecord
from control_plane.database.operations import OperationRecord
from control_plane.states import ATTEMPT_STATES, Change, State
from everstep.errors import EverstepError, FieldViolation, Reason
from everstep.overrides import check_overrides
from everstep.training.v1.checkpoint_pb2 import Checkpoint, CheckpointReference
from everstep.training.v1.progress_pb2 import TrainingPosition, TrainingResult
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy


@dataclass(frozen=True)
class ResumePlan:
    """What a resume changes."""

    change: Change
    message: str
    values: dict[str, Any]


def plan(
    connection: Connection,
    operation: OperationRecord,
    checkpoint_id: str,
    overrides: StrategyOverrides,
) -> ResumePlan:
    """How the operation is resumed; nothing is changed yet.

    Raises:
        EverstepError: Each reason for which it cannot be, see `Operations.resume`.
    """
    _check_state(operation)
    merged = StrategyOverrides.FromString(operation.overrides or b"")
    epochs_before = total_epochs(operation)
    merged.ClearField("allow_inexact")
    merged.MergeFrom(overrides)
    epochs = merged.epochs if merged.HasField("epochs") else epochs_before
    if operation.state == State.COMPLETED:
        _check_extension(operation, overrides)
    check_overrides(
        TrainingStrategy.FromString(operation.strategy),
        merged.epochs if merged.HasField("epochs") else None,
        overrides.learning_rate if overrides.HasField("learning_rate") else None,
    )
    checkpoint = _checkpoint(connection, operation, checkpoint_id)
    if overrides.HasField("epochs") and overrides.epochs < checkpoint.epoch:
        raise EverstepError(
            Reason.INVALID_REQUEST,
            f"overrides.epochs is {overrides.epochs}, but checkpoint {checkpoint.checkpoint_id} is "
            f"at epoch {checkpoint.epoch}; ask for {checkpoint.epoch} or more",
            violations=[FieldViolation("overrides.epochs", f"at least {checkpoint.epoch}")],
        )
    position = TrainingPosition.FromString(operation.position)
    if epochs > epochs_before:
        # There is more to do than before: the same work is a smaller part of it.
        position.fraction = _done(operation, position) * epochs_before / epochs
    change = Change.EXTENDED if operation.state == State.COMPLETED else Change.RESUMED
    return ResumePlan(
        change,
        f"from checkpoint {checkpoint.checkpoint_id} at step {checkpoint.step}"
        + _described(overrides),
        {
            "losses": 0,
            "due_time": 0,
            "discard": False,
            "result": None,
            "error": None,
            "position": position.SerializeToString(),
            "overrides": merged.SerializeToString() if merged.ByteSize() else None,
            "resumed_after": operation.attempt,
            "resume_checkpoint_id": checkpoint.checkpoint_id,
            "resume_named": bool(checkpoint_id),
        },
    )


def _done(operation: OperationRecord, position: TrainingPosition) -> float:
    """How far it is, of the epochs it was to have; one that stopped early is not at its end."""
    if operation.state == State.COMPLETED and position.total_steps:
        return min(1.0, position.step / position.total_steps)
    return position.fraction


def conflict(operation_id: str) -> EverstepError:
    """RESUME_CONFLICT: another caller was first."""
    return EverstepError(
        Reason.RESUME_CONFLICT,
        f"another caller has just resumed operation {operation_id}; watch it",
        metadata={"operation_id": operation_id},
    )


def total_epochs(operation: OperationRecord) -> int:
    """The epochs that the operation is to have, overrides counted in."""
    overrides = StrategyOverrides.FromString(operation.overrides or b"")
    if overrides.HasField("epochs"):
        return overrides.epochs
    return TrainingStrategy.FromString(operation.strategy).training.epochs


def reference_of(checkpoint: CheckpointRecord) -> CheckpointReference:
    """What names the checkpoint to a trainer."""
    return Checkpoint.FromString(checkpoint.payload).reference


def _check_state(operation: OperationRecord) -> None:
    if operation.state == State.PENDING and operation.resumed_after == operation.attempt:
        raise conflict(operation.operation_id)
    if operation.state == State.PENDING or operation.state in ATTEMPT_STATES:
        advice = (
            "wait until it is CANCELLED, then resume it"
            if operation.state == State.CANCELLING
            else "watch it"
        )
        raise EverstepError(
            Reason.ALREADY_RUNNING,
            f"operation {operation.operation_id} is {operation.state}; {advice}",
        )


def _check_extension(operation: OperationRecord, overrides: StrategyOverrides) -> None:
    done = TrainingResult.FromString(operation.result or b"").epochs
    if not overrides.HasField("epochs") or overrides.epochs <= done:
        raise EverstepError(
            Reason.ALREADY_COMPLETED,
            f"operation {operation.operation_id} has completed its {done} epochs; resume it with "
            f"overrides.epochs above {done}, or create a new one",
        )


def _checkpoint(
    connection: Connection, operation: OperationRecord, checkpoint_id: str
) -> CheckpointRecord:
    newest = next_readable(connection, operation.operation_id)
    if not checkpoint_id:
        if newest is not None:
            return newest
        if checkpoints.of_operation(connection, operation.operation_id):
            raise _damaged(f"every checkpoint of {operation.operation_id}", None)
        raise EverstepError(
            Reason.NO_CHECKPOINT,
            f"operation {operation.operation_id} has no checkpoint to go on from; create a new one",
        )
    checkpoint = checkpoints.find(connection, checkpoint_id)
    if checkpoint is None or checkpoint.operation_id != operation.operation_id:
        raise checkpoint_not_found(checkpoint_id, f" of operation {operation.operation_id}")
    if checkpoint.damaged:
        raise _damaged(f"checkpoint {checkpoint_id}", newest)
    return checkpoint


def _damaged(what: str, newest: CheckpointRecord | None) -> EverstepError:
    if newest is None:
        advice = "VerifyCheckpoint reads one again, or create a new operation"
        return EverstepError(Reason.CHECKPOINT_CORRUPT, f"{what} was found damaged; {advice}")
    return EverstepError(
        Reason.CHECKPOINT_CORRUPT,
        f"{what} was found damaged; the newest good one is {newest.checkpoint_id}",
        metadata={"newest_good_checkpoint_id": newest.checkpoint_id},
    )


def _described(overrides: StrategyOverrides) -> str:
    changes = [
        field.name if value is True else f"{field.name}={value:g}"
        for field, value in overrides.ListFields()
    ]
    return f", with {', '.join(changes)}" if changes else ""
