"""What is done about a loss, a gradient or a metric that is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from everstep.errors import EverstepError, Reason
from trainer_service.child.events import Position, RollbackWanted
from trainer_service.child.training_state import TrainingState

#: More steps than these that are not finite, one after another, are no accident.
MAX_SKIPPED_IN_A_ROW: Final = 25


def judge_step(
    policy: str, state: TrainingState, position: Position, losses: Sequence[float], norm: float
) -> str:
    """Says that a step is skipped, and counts it, where the policy is to skip.

    Args:
        policy: fail, skip or rollback.
        losses: Of the step's batches, up to the first that is not finite.
        norm: Of the gradients.

    Raises:
        EverstepError: NON_FINITE_LOSS.
        RollbackWanted: Where the policy is to roll back.
    """
    loss = losses[-1]
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    batch = state.batch + len(losses) - 1
    message = f"{what} in epoch {state.epoch}, batch {batch} (step {state.step + 1})"
    if policy == "rollback":
        raise RollbackWanted(position, state.step + 1, message)
    if policy == "fail":
        raise _not_finite(message)
    if state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
        raise _not_finite(f"{message}, as in the {MAX_SKIPPED_IN_A_ROW} steps before it")
    state.skipped_in_a_row += 1
    return f"{message}: the step is left out"


def judge_epoch(
    policy: str, state: TrainingState, position: Position, metrics: Mapping[str, float]
) -> None:
    """Refuses an epoch without a step, or with metrics that are not finite: none can be skipped.

    Raises:
        EverstepError: NON_FINITE_LOSS.
        RollbackWanted: Where the policy is to roll back.
    """
    strange = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if state.examples == 0:
        strange = ["every step is left out"]
    if not strange:
        return
    message = f"{strange[0]} in epoch {state.epoch} (step {state.step})"
    if policy == "rollback" and state.examples:
        raise RollbackWanted(position, state.step, message)
    raise _not_finite(message)


def _not_finite(message: str) -> EverstepError:
    return EverstepError(
        Reason.NON_FINITE_LOSS,
        f"{message}; lower the learning rate, clip gradients, or look at the data; "
        "training.non_finite may say skip or rollback",
    )
