"""What the two faces of the SDK share: requests put together, answers understood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, get_args

from everstep.control.v1 import operations_pb2
from everstep.control.v1.checkpoints_pb2 import CheckpointPart as PartMessage
from everstep.errors import (
    EverstepError,
    FieldViolation,
    OperationCancelled,
    Reason,
    TrainingFailed,
)
from everstep.sdk import translation
from everstep.sdk.checkpoints import CheckpointPart
from everstep.sdk.operations import OperationState, TrainingResult
from everstep.training.v1.strategy_pb2 import StrategyOverrides

States = OperationState | str | Iterable[OperationState | str]


def result_of(operation: operations_pb2.Operation) -> TrainingResult:
    """The result of a finished operation.

    Raises:
        TrainingFailed: When it failed.
        OperationCancelled: When it was cancelled.
    """
    if operation.state == operations_pb2.OPERATION_STATE_COMPLETED:
        return translation.training_result(operation.result)
    name = operation.operation_id
    metadata = {
        "operation_id": name,
        "checkpoint_id": operation.latest_checkpoint.reference.checkpoint_id,
    }
    if operation.state == operations_pb2.OPERATION_STATE_CANCELLED:
        raise OperationCancelled(
            Reason.OPERATION_CANCELLED,
            f"{name} was cancelled at step {operation.position.step}"
            + ("; resume it" if operation.resumable else ""),
            metadata=metadata,
        )
    raise _failed(operation, metadata)


def overrides(
    epochs: int | None, learning_rate: float | None, allow_inexact: bool
) -> StrategyOverrides | None:
    """What a resume changes; None for nothing."""
    if epochs is None and learning_rate is None and not allow_inexact:
        return None
    return StrategyOverrides(
        epochs=epochs, learning_rate=learning_rate, allow_inexact=allow_inexact
    )


def state_values(states: States | None) -> list[operations_pb2.OperationState.ValueType]:
    """The contract's numbers of the states that are asked for.

    Raises:
        InvalidRequest: When there is no such state.
    """
    names = [states] if isinstance(states, str) else list(states or ())
    try:
        return [translation.state_value(name) for name in names]
    except ValueError:
        known = ", ".join(state for state in OperationState if state is not OperationState.UNKNOWN)
        raise EverstepError(
            Reason.INVALID_REQUEST, f"one of {names} is no state; there are {known}"
        ) from None


def part_value(part: CheckpointPart) -> PartMessage.ValueType:
    """The contract's number of a part.

    Raises:
        InvalidRequest: When there is no such part.
    """
    if part not in _PARTS:
        raise EverstepError(
            Reason.INVALID_REQUEST, f"there is no part {part!r}; there are {', '.join(_PARTS)}"
        )
    return PartMessage.Value(f"CHECKPOINT_PART_{part.upper()}")


_PARTS: Final = get_args(CheckpointPart)


def _failed(operation: operations_pb2.Operation, metadata: dict[str, str]) -> TrainingFailed:
    error = operation.error
    reason = Reason(error.reason) if error.reason in Reason.__members__ else Reason.TRAINING_FAILED
    violations = [FieldViolation(v.field, v.description) for v in error.violations]
    message = f"{operation.operation_id} failed: {error.message}"
    failed = TrainingFailed(
        reason, message, violations=violations, metadata={**metadata, "detail": error.detail}
    )
    cause = EverstepError(reason, error.message, violations=violations)
    if not isinstance(cause, TrainingFailed):
        failed.__cause__ = cause
    return failed
