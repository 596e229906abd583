"""Small trainings that hold everything a resume can lose: BatchNorm, dropout, tails, patience."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from trainer_service.child.cadence import CheckpointPolicy
from trainer_service.child.model_trainer_config import ModelTrainerConfig
from trainer_service.generators import forget_generators, register_generator

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
    #: bf16-mixed or fp16-mixed; empty: as the weights' type says.
    mixed: str = ""
    ema_decay: float | None = None
    #: Whether the first class is drawn three times as often as the others.
    weighted: bool = False
    non_finite: str = "fail"
    #: Examples whose inputs are NaN.
    poisoned: tuple[int, ...] = ()
    #: Draws noise from a generator of its own in every forward pass.
    noisy: bool = False
    #: After so many forward passes the model freezes a part of itself.
    freezes_after: int | None = None
    #: Whether the examples are a stream: one that seeks, or one that keeps its own state.
    stream: Literal["", "seeks", "keeps"] = ""
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
        forget_generators()
        torch.manual_seed(initialisation)
        outputs = CLASSES if self.task == "classification" else 1
        layers: list[nn.Module] = []
        if self.noisy:
            layers.append(Noise(initialisation))
        if self.freezes_after is not None:
            layers.append(Freezing(self.freezes_after))
        layers.append(nn.Linear(FEATURES, 12))
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
            "precision": self.mixed
            or ("float64" if self.precision is torch.float64 else "float32"),
            "ema_decay": self.ema_decay,
            "weighted": self.weighted,
            "non_finite": self.non_finite,
            "request": {"name": self.name},
        }
        return ModelTrainerConfig(**(settings | changes))

    def data(self) -> tuple[Any, Examples]:
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
        inputs[list(self.poisoned)] = torch.nan
        train = Examples(inputs[:EXAMPLES], targets[:EXAMPLES])
        if self.weighted:
            train.sample_weights = 1.0 + 2.0 * (targets[:EXAMPLES] == 0)
        validation = Examples(inputs[EXAMPLES:], targets[EXAMPLES:])
        if self.stream == "seeks":
            return Stream(train), validation
        return (StatefulStream(train) if self.stream else train), validation


@dataclass
class Examples:
    """(input, target) pairs in memory."""

    inputs: torch.Tensor
    targets: torch.Tensor
    sample_weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.targets[index]


class Stream:
    """Examples one after another, with noise from the global generators; it seeks."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.position = 0
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def seek(self, position: int) -> None:
        self.position = position

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            inputs, target = self.examples[self.position % len(self.examples)]
            self.position += 1
            yield inputs + 0.1 * torch.randn_like(inputs), target


class StatefulStream:
    """Walks through its examples at random, on and on; it keeps where it is."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.place = 0

    def __len__(self) -> int:
        return len(self.examples)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            self.place = (self.place + int(torch.randint(1, 5, ()))) % len(self.examples)
            yield self.examples[self.place]


class Noise(nn.Module):
    """Adds noise from generators that live as long as the training."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.torch = torch.Generator().manual_seed(seed)
        self.numpy = np.random.default_rng(seed)
        self.python = random.Random(seed)
        for name in ("torch", "numpy", "python"):
            register_generator(name, getattr(self, name))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = self.python.random() + float(self.numpy.random())
        noise = torch.randn(inputs.shape, generator=self.torch)
        return inputs + 0.1 * scale * noise.to(inputs.device)


class Freezing(nn.Module):
    """A 1x1 convolution that, after some passes, is frozen, evaluates and is channels-last."""

    passes: torch.Tensor

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.convolution = nn.Conv2d(2, 2, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.convolution.training:
            self.passes += 1
            if int(self.passes) == self.after:
                weight = self.convolution.weight
                weight.requires_grad_(False)
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
                self.dropout.eval()
        images = inputs.reshape(len(inputs), 2, 1, -1)
        return self.dropout(self.convolution(images)).reshape(inputs.shape)


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


def _sequential(optimizer: torch.optim.Optimizer) -> Any:
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=6)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[6])


def _chained(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.ConstantLR(optimizer, factor=0.3, total_iters=5),
            lr_scheduler.ExponentialLR(optimizer, gamma=0.95),
        ]
    )


def _falling(step: int) -> float:
    return 1 / (1 + step)


def _factor(step: int) -> float:
    return 0.9 if step % 2 else 1.05


_SCHEDULES |= {
    "LambdaLR": (partial(lr_scheduler.LambdaLR, lr_lambda=_falling), "step"),
    "MultiplicativeLR": (partial(lr_scheduler.MultiplicativeLR, lr_lambda=_factor), "step"),
    "SWALR": (partial(SWALR, swa_lr=0.001, anneal_epochs=9), "step"),
    "SequentialLR": (_sequential, "step"),
    "ChainedScheduler": (_chained, "step"),
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
    *(
        (optimizer, {"lr": 0.02, how: True})
        for how in ("foreach", "fused")
        for optimizer in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
    ),
    (torch.optim.RMSprop, {"lr": 0.01, "foreach": True}),
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
AVERAGED = Scenario("averaged", ema_decay=0.9, patience=2, epochs=3)
BFLOAT16 = Scenario("bf16-mixed", mixed="bf16-mixed", ema_decay=0.8, accumulate=2, epochs=3)
#: The scale falls at first, for the gradients overflow, and would grow soon.
FLOAT16 = Scenario("fp16-mixed", mixed="fp16-mixed", gradient_clip=0.7, epochs=3)
WEIGHTED = Scenario("weighted", weighted=True, epochs=3)
NOISY = Scenario("noisy", noisy=True, epochs=3)
FREEZING = Scenario("freezing", freezes_after=9, epochs=3)
SEEKING = Scenario("stream that seeks", stream="seeks", epochs=3)
KEEPING = Scenario("stream that keeps its state", stream="keeps", epochs=3)
SKIPPING = Scenario(
    "skipping", non_finite="skip", poisoned=(3, 20), batch_size=4, accumulate=2, epochs=2
)
KINDS_OF_STATE = (
    AVERAGED, BFLOAT16, FLOAT16, WEIGHTED, NOISY, FREEZING, SEEKING, KEEPING, SKIPPING,
)  # fmt: skip
EVERY_SCENARIO = (*KINDS_OF_STATE, *VARIANTS, *SCHEDULES, *OPTIMIZERS)
