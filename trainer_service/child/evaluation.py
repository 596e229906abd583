"""Metrics of a model on examples it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

import torch
from torch import nn

from trainer_service.child.batches import evaluation_batches
from trainer_service.child.devices import CPU, Device
from trainer_service.child.heartbeat import Activity, Heartbeat
from trainer_service.child.module_modes import evaluation_mode
from trainer_service.child.randomness import reseed

Task = Literal["classification", "regression"]

#: The metrics of an evaluation, without their prefix.
METRICS: Final[Mapping[Task, tuple[str, ...]]] = {
    "classification": ("loss", "accuracy"),
    "regression": ("loss", "mae", "r2"),
}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: nn.Module,
    examples: Any,
    *,
    task: Task,
    prefix: str,
    batch_size: int,
    seed: int,
    epoch: int,
    between_batches: Callable[[], None],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    dtype: torch.dtype = torch.float32,
    device: Device = CPU,
    heartbeat: Heartbeat | None = None,
) -> dict[str, float]:
    """The mean loss, and accuracy or mean absolute error and R².

    The model is in evaluation mode meanwhile. Sums are in float64, in the order of the examples.

    Args:
        prefix: Of the metrics' names, as in `val_loss`.
        between_batches: Called after each batch; may raise to end the evaluation.
        autocast: Around every forward pass.
        dtype: Of inputs and targets that are floating-point numbers.
        device: Where the model is.
        heartbeat: Told of each batch.
    """
    reseed(seed, "evaluation", prefix, epoch)
    sums = _RegressionSums() if task == "regression" else _ClassificationSums()
    batches = evaluation_batches(examples, batch_size, dtype, device)
    if heartbeat is not None:
        batches = heartbeat.drawn(batches, Activity.EVALUATION)
    with evaluation_mode(model):
        for inputs, targets in batches:
            with autocast():
                outputs = model(inputs)
                value = float(loss(outputs, targets))
            sums.add(value, outputs, targets)
            between_batches()
    return {f"{prefix}_{name}": value for name, value in sums.metrics().items()}


class _ClassificationSums:
    def __init__(self) -> None:
        self._loss = 0.0
        self._right = 0
        self._count = 0

    def add(self, loss: float, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self._loss += loss * len(targets)
        self._right += int((outputs.argmax(dim=1) == targets).sum())
        self._count += len(targets)

    def metrics(self) -> dict[str, float]:
        return {"loss": self._loss / self._count, "accuracy": self._right / self._count}


class _RegressionSums:
    def __init__(self) -> None:
        self._loss = 0.0
        self._absolute = 0.0
        self._squared = 0.0
        self._total = 0.0
        self._total_squared = 0.0
        self._count = 0
        self._values = 0

    def add(self, loss: float, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        wanted = targets.double()
        difference = outputs.double() - wanted
        self._loss += loss * len(targets)
        # Together: another device is waited for once.
        absolute, squared, total, total_squared = torch.stack(
            [difference.abs().sum(), difference.square().sum(), wanted.sum(), wanted.square().sum()]
        ).tolist()
        self._absolute += absolute
        self._squared += squared
        self._total += total
        self._total_squared += total_squared
        self._count += len(targets)
        self._values += targets.numel()

    def metrics(self) -> dict[str, float]:
        spread = self._total_squared - self._total**2 / self._values
        return {
            "loss": self._loss / self._count,
            "mae": self._absolute / self._values,
            "r2": 1 - self._squared / spread if spread > 0 else 0.0,
        }
