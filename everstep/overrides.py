"""Which overrides a resume may ask for: the control plane and the trainer refuse the same."""

from __future__ import annotations

from typing import Any, Final

from everstep.errors import EverstepError, FieldViolation, Reason
from everstep.strategy import strategy_content
from everstep.training.v1.strategy_pb2 import TrainingStrategy

#: Arguments that say how long the whole schedule is.
_TOTALS: Final = {"CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters"}
#: Schedulers that compute every rate from limits of their own.
_OWN_LIMITS: Final = frozenset({"OneCycleLR", "CyclicLR"})
_FORK: Final = "(everstep train STRATEGY.yaml --from-checkpoint CHECKPOINT)"


def check_overrides(
    strategy: TrainingStrategy, epochs: int | None, learning_rate: float | None
) -> None:
    """Refuses what would make another training of it.

    Args:
        strategy: As the operation was created with it.
        epochs: The total that is asked for; None: the strategy's.
        learning_rate: The one that is asked for; None: the checkpoint's.

    Raises:
        EverstepError: INVALID_REQUEST, naming the override and offering a fork.
    """
    declared = strategy.training.epochs
    if not strategy.HasField("scheduler"):
        return
    scheduler = strategy_content(strategy)["scheduler"]
    if epochs not in (None, declared) and _depends_on_total(scheduler, declared):
        raise _refused(
            "overrides.epochs",
            "the schedule depends on the total",
            f"the schedule {strategy.scheduler.name} is made for {declared} epochs: with {epochs} "
            "the learning rates so far would have been others; resume with "
            f"{declared} epochs, or fork it: a strategy with {epochs} epochs that begins with the "
            f"checkpoint {_FORK}",
        )
    if learning_rate is not None and strategy.scheduler.name in _OWN_LIMITS:
        raise _refused(
            "overrides.learning_rate",
            "the schedule overwrites it",
            f"{strategy.scheduler.name} sets every learning rate itself, from its own limits: "
            "learning_rate would have no effect; resume without it, or fork it with another "
            f"scheduler {_FORK}",
        )


def _depends_on_total(scheduler: dict[str, Any], epochs: int) -> bool:
    """Whether the learning rates up to an epoch would be others with more epochs in all."""
    if scheduler["name"] == "OneCycleLR":
        return True
    if any(_depends_on_total(part, epochs) for part in scheduler.get("schedulers", ())):
        return True
    total = _TOTALS.get(scheduler["name"])
    if total is None:
        return False
    stepped = scheduler.get("interval") == "step"
    return stepped or scheduler.get("args", {}).get(total) == epochs


def _refused(field: str, description: str, message: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST, message, violations=[FieldViolation(field, description)]
    )
