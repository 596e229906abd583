"""Learning rate schedulers of torch by name."""

from __future__ import annotations

from typing import Any, Final

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from everstep.training.v1.strategy_pb2 import SchedulerDeclaration
from trainer_service.strategies.arguments import (
    call_with,
    choose,
    import_own,
    is_own,
    plain_arguments,
    refused,
)

Scheduler = LRScheduler | ReduceLROnPlateau

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
    "LambdaLR": lr_scheduler.LambdaLR,
    "MultiplicativeLR": lr_scheduler.MultiplicativeLR,
    "SWALR": SWALR,
    "SequentialLR": lr_scheduler.SequentialLR,
    "ChainedScheduler": lr_scheduler.ChainedScheduler,
}
_COMPOSED: Final = frozenset({"SequentialLR", "ChainedScheduler"})
#: These take a function of the epoch or step, a team's own.
_BY_FUNCTION: Final = frozenset({"LambdaLR", "MultiplicativeLR"})


def build_scheduler(
    declaration: SchedulerDeclaration | None,
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    allowed_packages: tuple[str, ...] = (),
) -> Scheduler | None:
    """The scheduler of that name; None where none is declared.

    OneCycleLR takes its length from the training unless it is given one; LambdaLR and
    MultiplicativeLR take `lr_lambda` as `package.module:function`.
    """
    if declaration is None:
        return None
    return _build(
        declaration, "scheduler", declaration.interval, optimizer, epochs, steps_per_epoch,
        allowed_packages,
    )  # fmt: skip


def _build(
    declaration: SchedulerDeclaration,
    field: str,
    interval: str,
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    allowed_packages: tuple[str, ...],
) -> Scheduler:
    name = choose(f"{field}.name", declaration.name, _SCHEDULERS)
    arguments = plain_arguments(declaration.args)
    if name == "OneCycleLR":
        if interval != "step":
            raise refused("scheduler.interval", "OneCycleLR advances with every step: say `step`")
        if not {"total_steps", "epochs", "steps_per_epoch"} & arguments.keys():
            arguments |= {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    if name in _BY_FUNCTION:
        function = str(arguments.get("lr_lambda", ""))
        if not is_own(function):
            raise refused(f"{field}.args.lr_lambda", "name a function, `package.module:function`")
        arguments["lr_lambda"] = import_own(f"{field}.args.lr_lambda", function, allowed_packages)
    given: tuple[Any, ...] = (optimizer,)
    if bool(declaration.schedulers) != (name in _COMPOSED):
        fault = "needs schedulers to be composed of" if name in _COMPOSED else "is not composed"
        raise refused(f"{field}.schedulers", f"{name} {fault}")
    if name in _COMPOSED:
        parts = [
            _build(
                part, f"{field}.schedulers[{index}]", interval, optimizer, epochs,
                steps_per_epoch, allowed_packages,
            )
            for index, part in enumerate(declaration.schedulers)
        ]  # fmt: skip
        if any(isinstance(part, ReduceLROnPlateau) for part in parts):
            raise refused(f"{field}.schedulers", "ReduceLROnPlateau cannot be a part of another")
        given = (parts,) if name == "ChainedScheduler" else (optimizer, parts)
    scheduler: Scheduler = call_with(f"{field}.args", _SCHEDULERS[name], given, arguments)
    return scheduler
