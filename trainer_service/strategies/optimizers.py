"""Optimizers of torch by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import optim

from everstep.training.v1.strategy_pb2 import OptimizerDeclaration
from trainer_service.strategies.arguments import call_with, choose, plain_arguments

_OPTIMIZERS: Final[dict[str, Any]] = {
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
    "SGD": optim.SGD,
    "RMSprop": optim.RMSprop,
    "Adagrad": optim.Adagrad,
    "NAdam": optim.NAdam,
    "RAdam": optim.RAdam,
    "Adamax": optim.Adamax,
}


def build_optimizer(
    declaration: OptimizerDeclaration, parameters: Iterable[torch.nn.Parameter]
) -> optim.Optimizer:
    """The optimizer of that name over the parameters, in their order."""
    factory = _OPTIMIZERS[choose("optimizer.name", declaration.name, _OPTIMIZERS)]
    arguments = plain_arguments(declaration.args)
    optimizer: optim.Optimizer = call_with(
        "optimizer.args", factory, (list(parameters),), arguments
    )
    return optimizer
