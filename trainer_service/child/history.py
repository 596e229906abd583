"""What a training has been through, epoch by epoch, and its best epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


def is_maximised(metric: str) -> bool:
    """Whether more is better: true for all but losses and errors."""
    return not metric.endswith(("loss", "error", "mse", "mae", "rmse"))


def is_better(metric: str, value: float, than: float | None, min_delta: float = 0.0) -> bool:
    """Whether a value improves on another by more than `min_delta`; NaN never does."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value > than + min_delta if is_maximised(metric) else value < than - min_delta


@dataclass(frozen=True)
class EpochRecord:
    """One entry of the history; no wall-clock, so that it is the same after a resume."""

    epoch: int
    metrics: dict[str, float]
    learning_rate: float
    is_best: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "metrics": self.metrics,
            "learning_rate": self.learning_rate,
            "is_best": self.is_best,
        }


@dataclass
class BestEpoch:
    """The best value of the monitored metric, and the weights that reached it."""

    monitor: str
    value: float | None = None
    epoch: int | None = None
    #: Copies: never the live tensors.
    weights: dict[str, torch.Tensor] | None = field(default=None, repr=False)

    def offer(self, value: float, epoch: int, model: nn.Module) -> bool:
        """Takes an epoch if it is better than the best so far, and says whether it is."""
        if not is_better(self.monitor, value, self.value):
            return False
        self.value, self.epoch = value, epoch
        self.weights = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }
        return True
