"""Losses by name, and the task that each is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from torch import nn

from trainer_service.strategies.arguments import choose

Task = Literal["classification", "regression"]

_LOSSES: Final[dict[str, tuple[Callable[[], nn.Module], Task]]] = {
    "cross_entropy": (nn.CrossEntropyLoss, "classification"),
    "mse": (nn.MSELoss, "regression"),
    "l1": (nn.L1Loss, "regression"),
    "smooth_l1": (nn.SmoothL1Loss, "regression"),
    "huber": (nn.HuberLoss, "regression"),
}


def build_loss(name: str) -> nn.Module:
    """The loss of that name, as a mean over examples."""
    return _LOSSES[choose("loss", name, _LOSSES)][0]()


def task_of_loss(name: str) -> Task:
    """What a loss is for: classification or regression."""
    return _LOSSES[choose("loss", name, _LOSSES)][1]
