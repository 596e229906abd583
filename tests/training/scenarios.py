"""Small trainings that hold everything a resume can lose: BatchNorm, dropout, tails, patience."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler

from trainer_service.child.cadence import CheckpointPolicy
from trainer_service.child.model_trainer import ModelTrainerConfig

EXAMPLES = 52
VALIDATION = 24
FEATURES = 6
CLASSES = 3

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.01)


@dataclass(frozen=True)
class Scenario:
    """One training, complete but for its context."""

    name: str
    optimizer: MakeOptimizer = _adamw
    scheduler: MakeScheduler | None = None
    scheduler_interval: str = "epoch"
    task: Literal["classification", "regression"] = "classification"
    epochs: int = 4
    batch_size: int = 8
    accumulate: int = 1
    gradient_clip: float = 0.0
    monitor: str = "val_loss"
    patience: int | None = None
    precision: torch.dtype = torch.float32
    workers: int = 0
    #: Without them the weights are all that a forward pass depends on.
    buffers: bool = True
    #: The share of labels that mean nothing: validation gets worse in time.
    noise: float = 0.0
    seed: int = 5

    @property
    def batches(self) -> int:
        return -(-EXAMPLES // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.batches // self.accumulate)

    def model(self, initialisation: int) -> nn.Module:
        """With BatchNorm and dropout, so that buffers and random numbers count."""
        torch.manual_seed(initialisation)
        outputs = CLASSES if self.task == "classification" else 1
        layers: list[nn.Module] = [nn.Linear(FEATURES, 12)]
        if self.buffers:
            layers.append(nn.BatchNorm1d(12))
        layers += [nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, outputs)]
        return nn.Sequential(*layers).to(self.precision)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss() if self.task == "classification" else nn.MSELoss()

    def config(self, **changes: Any) -> ModelTrainerConfig:
        settings: dict[str, Any] = {
            "seed": self.seed,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "task": self.task,
            "accumulate": self.accumulate,
            "gradient_clip": self.gradient_clip,
            "monitor": self.monitor,
            "patience": self.patience,
            "scheduler_interval": self.scheduler_interval,
            "checkpoint": CheckpointPolicy(every_steps=1, every_epochs=0),
            "workers": self.workers,
            "request": {"name": self.name},
        }
        return ModelTrainerConfig(**(settings | changes))

    def data(self) -> tuple[Examples, Examples]:
        """Examples to train on and to validate on; the same each time."""
        drawn = torch.Generator().manual_seed(99)
        count = EXAMPLES + VALIDATION
        inputs = torch.randn(count, FEATURES, generator=drawn, dtype=torch.float64)
        weights = torch.randn(FEATURES, CLASSES, generator=drawn, dtype=torch.float64)
        labels = (inputs @ weights).argmax(dim=1)
        noisy = torch.rand(count, generator=drawn) < self.noise
        labels[noisy] = torch.randint(CLASSES, (count,), generator=drawn)[noisy]
        targets = labels
        if self.task == "regression":
            targets = (inputs @ weights[:, :1]).to(self.precision)
        inputs = inputs.to(self.precision)
        return (
            Examples(inputs[:EXAMPLES], targets[:EXAMPLES]),
            Examples(inputs[EXAMPLES:], targets[EXAMPLES:]),
        )


@dataclass
class Examples:
    """(input, target) pairs in memory."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.targets[index]


@dataclass
class AugmentedExamples(Examples):
    """Draws noise for every example, from the generator that it is given."""

    strength: float = field(default=0.3)

    def example(self, index: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(self.inputs.shape[1], generator=generator)
        return self.inputs[index] + self.strength * noise, self.targets[index]


PLAIN = Scenario("plain", partial(torch.optim.Adam, lr=0.02), buffers=False)
EVERYTHING = Scenario(
    "everything",
    scheduler=partial(lr_scheduler.StepLR, step_size=1, gamma=0.7),
    accumulate=3,
    gradient_clip=0.5,
)
#: Reaches its best early, then only gets worse, and stops before its last epoch.
OVERFITTING = Scenario(
    "overfitting",
    partial(torch.optim.Adam, lr=0.08),
    epochs=12,
    batch_size=13,
    noise=0.9,
    patience=3,
)
#: As that, but goes on to the last epoch.
ONLY_WORSE = Scenario(
    "only worse", partial(torch.optim.Adam, lr=0.08), epochs=7, batch_size=13, noise=0.9
)


def _one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=4 * 7)


_SCHEDULES: dict[str, tuple[MakeScheduler, str]] = {
    "StepLR": (partial(lr_scheduler.StepLR, step_size=2, gamma=0.5), "epoch"),
    "MultiStepLR": (partial(lr_scheduler.MultiStepLR, milestones=[1, 3], gamma=0.3), "epoch"),
    "ExponentialLR": (partial(lr_scheduler.ExponentialLR, gamma=0.97), "step"),
    "CosineAnnealingLR": (partial(lr_scheduler.CosineAnnealingLR, T_max=4), "epoch"),
    "CosineAnnealingWarmRestarts": (
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=5, T_mult=2),
        "step",
    ),
    "OneCycleLR": (_one_cycle, "step"),
    "ReduceLROnPlateau": (
        partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.2),
        "epoch",
    ),
    "LinearLR": (partial(lr_scheduler.LinearLR, start_factor=0.2, total_iters=9), "step"),
    "ConstantLR": (partial(lr_scheduler.ConstantLR, factor=0.3, total_iters=2), "epoch"),
    "PolynomialLR": (partial(lr_scheduler.PolynomialLR, total_iters=28, power=0.9), "step"),
    "CyclicLR": (
        partial(lr_scheduler.CyclicLR, base_lr=0.002, max_lr=0.03, step_size_up=5),
        "step",
    ),
}
SCHEDULES = tuple(
    Scenario(f"schedule {name}", scheduler=scheduler, scheduler_interval=interval)
    for name, (scheduler, interval) in _SCHEDULES.items()
)
_OPTIMIZERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (torch.optim.Adam, {"lr": 0.02, "amsgrad": True}),
    (torch.optim.SGD, {"lr": 0.05}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.01}),
    (torch.optim.NAdam, {"lr": 0.02}),
    (torch.optim.RAdam, {"lr": 0.02}),
    (torch.optim.Adamax, {"lr": 0.02}),
)
OPTIMIZERS = tuple(
    Scenario(
        f"optimizer {optimizer.__name__} {arguments}", partial(optimizer, **arguments), epochs=2
    )
    for optimizer, arguments in _OPTIMIZERS
)
VARIANTS = (
    PLAIN,
    EVERYTHING,
    OVERFITTING,
    ONLY_WORSE,
    Scenario("float64", precision=torch.float64, epochs=2),
    Scenario("regression", task="regression", monitor="val_r2", patience=2),
    Scenario("accuracy", monitor="val_accuracy", patience=1, noise=0.5, epochs=6),
)
EVERY_SCENARIO = (*VARIANTS, *SCHEDULES, *OPTIMIZERS)
