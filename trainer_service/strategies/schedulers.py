"""Learning rate schedulers of torch by name."""

from __future__ import annotations

from typing import Any, Final

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from everstep.training.v1.strategy_pb2 import SchedulerDeclaration
from trainer_service.strategies.arguments import call_with, choose, plain_arguments, refused

_SCHEDULERS: Final[dict[str, Any]] = {
    "StepLR": lr_scheduler.StepLR,
    "MultiStepLR": lr_scheduler.MultiStepLR,
    "ExponentialLR": lr_scheduler.ExponentialLR,
    "CosineAnnealingLR": lr_scheduler.CosineAnnealingLR,
    "CosineAnnealingWarmRestarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "OneCycleLR": lr_scheduler.OneCycleLR,
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "LinearLR": lr_scheduler.LinearLR,
    "ConstantLR": lr_scheduler.ConstantLR,
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CyclicLR": lr_scheduler.CyclicLR,
}
#: Arguments that say how long the whole schedule is.
_TOTALS: Final = {"CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters"}


def build_scheduler(
    declaration: SchedulerDeclaration | None,
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
) -> LRScheduler | ReduceLROnPlateau | None:
    """The scheduler of that name; None where none is declared.

    OneCycleLR takes its length from the training unless it is given one.
    """
    if declaration is None:
        return None
    name = choose("scheduler.name", declaration.name, _SCHEDULERS)
    arguments = plain_arguments(declaration.args)
    if name == "OneCycleLR":
        if declaration.interval != "step":
            raise refused("scheduler.interval", "OneCycleLR advances with every step: say `step`")
        if not {"total_steps", "epochs", "steps_per_epoch"} & arguments.keys():
            arguments |= {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    scheduler: LRScheduler | ReduceLROnPlateau = call_with(
        "scheduler.args", _SCHEDULERS[name], (optimizer,), arguments
    )
    return scheduler


def schedule_depends_on_total(declaration: SchedulerDeclaration | None, epochs: int) -> bool:
    """Whether the learning rates up to an epoch would be others with more epochs in all."""
    if declaration is None:
        return False
    if declaration.name == "OneCycleLR":
        return True
    total = _TOTALS.get(declaration.name)
    arguments = plain_arguments(declaration.args)
    if total is None:
        return False
    return declaration.interval == "step" or arguments.get(total) == epochs
