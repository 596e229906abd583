"""A team's own code, as a strategy names it: data, a model, a schedule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.training.scenarios import FEATURES, PLAIN, Examples, Noise, StatefulStream, Stream
from trainer_service.generators import register_generator
from trainer_service.strategies.data import LoadedData


class Augmented(Examples):
    """Draws from every global generator, as code that knows nothing of Everstep does."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale = random.random() + float(np.random.rand())
        return self.inputs[index] + scale * torch.randn(FEATURES), self.targets[index]


class WithoutPosition:
    """A stream that cannot be resumed."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        raise AssertionError("never iterated")


def loaded(train: Any, digest: str = "own-1") -> LoadedData:
    _, validation = PLAIN.data()
    return LoadedData(train, validation, validation, digest, (FEATURES,), 3)


def augmented() -> LoadedData:
    train, _ = PLAIN.data()
    return loaded(Augmented(train.inputs, train.targets))


def weighted() -> LoadedData:
    train, _ = PLAIN.data()
    train.sample_weights = 1.0 + train.targets
    return loaded(train)


def poisoned(examples: list[int]) -> LoadedData:
    """Inputs that are NaN, at some places."""
    train, _ = PLAIN.data()
    train.inputs[examples] = torch.nan
    return loaded(train, f"poisoned {examples}")


def stream(keeps: bool = False) -> LoadedData:
    train, _ = PLAIN.data()
    return loaded(StatefulStream(train) if keeps else Stream(train))


def short_stream() -> LoadedData:
    """Promises more examples than it has."""

    class Short(Stream):
        def __iter__(self) -> Any:
            for _, example in zip(range(20), super().__iter__(), strict=False):
                yield example

    train, _ = PLAIN.data()
    return loaded(Short(train))


def without_position() -> LoadedData:
    return loaded(WithoutPosition())


def without_digest() -> LoadedData:
    train, _ = PLAIN.data()
    return loaded(train, "")


def something_else() -> str:
    return "no data"


def noisy(input_shape: tuple[int, ...], output_size: int) -> nn.Module:
    """A model whose forward pass draws from generators of its own."""
    return nn.Sequential(
        Noise(int(torch.randint(1000, ()))),
        nn.Linear(input_shape[0], 12),
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Linear(12, output_size),
    )


def falling(step: int) -> float:
    return 1 / (1 + 0.1 * step)


class OnItsDevice(nn.Module):
    """Noise from a generator of its own, on the device that it is trained on."""

    def __init__(self, input_shape: tuple[int, ...], output_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0], output_size)
        place = "cuda" if torch.cuda.is_initialized() else "cpu"
        self.generator = torch.Generator(place).manual_seed(int(torch.randint(1000, ())))
        register_generator("noise", self.generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(inputs.shape, generator=self.generator, device=inputs.device)
        output: torch.Tensor = self.layer(inputs + 0.1 * noise)
        return output


def too_large(input_shape: tuple[int, ...], output_size: int) -> nn.Module:
    """Asks for more memory than any device has, in its forward pass."""

    class Greedy(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) + torch.empty(1 << 44, device=inputs.device).sum()

    return Greedy(input_shape[0], output_size)
