"""Models by name: a few built-in ones, and a team's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import nn

from everstep.training.v1.strategy_pb2 import ModelDeclaration
from trainer_service.strategies.arguments import (
    call_with,
    choose,
    import_own,
    is_own,
    plain_arguments,
    refused,
)

Shape = tuple[int, ...]


def mlp(
    input_shape: Shape,
    output_size: int,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
) -> nn.Module:
    """Fully connected layers with ReLU, over examples of any shape."""
    width = 1
    for size in input_shape:
        width *= size
    layers: list[nn.Module] = [nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, output_size))


class _Quarters(nn.Module):
    """The means of an image's four quarters (batch, channels, 2, 2); those of odd sizes overlap."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.device.type == "cpu":
            return nn.functional.adaptive_avg_pool2d(images, 2)
        return quarter_means(images)


def quarter_means(images: torch.Tensor) -> torch.Tensor:
    """As `adaptive_avg_pool2d(images, 2)`, whose gradient adds in any order on CUDA."""
    height, width = images.shape[-2:]
    rows = (slice(0, -(-height // 2)), slice(height // 2, None))
    columns = (slice(0, -(-width // 2)), slice(width // 2, None))
    means = [images[..., row, column].mean((-2, -1)) for row in rows for column in columns]
    return torch.stack(means, -1).reshape(*images.shape[:-2], 2, 2)


def cnn(
    input_shape: Shape,
    output_size: int,
    channels: Sequence[int] = (16, 32),
    dropout: float = 0.1,
) -> nn.Module:
    """3x3 convolutions with BatchNorm and ReLU, each but the first halving (channels, h, w)."""
    if len(input_shape) != 3:
        raise ValueError(f"cnn takes images (channels, height, width), not {list(input_shape)}")
    layers: list[nn.Module] = []
    width = input_shape[0]
    for index, size in enumerate(channels):
        layers += [
            nn.Conv2d(width, size, kernel_size=3, padding=1, stride=2 if index else 1),
            nn.BatchNorm2d(size),
            nn.ReLU(),
        ]
        width = size
    pooled = [_Quarters(), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, *pooled, nn.Linear(width * 4, output_size))


class _LastState(nn.Module):
    """A GRU's last state, and a linear layer."""

    def __init__(
        self, features: int, output_size: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.gru = nn.GRU(features, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, output_size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(inputs)
        output: torch.Tensor = self.output(self.dropout(states[:, -1]))
        return output


def gru(
    input_shape: Shape, output_size: int, hidden: int = 32, layers: int = 1, dropout: float = 0.0
) -> nn.Module:
    """A GRU over windows (time, features)."""
    if len(input_shape) != 2:
        raise ValueError(f"gru takes windows (time, features), not {list(input_shape)}")
    return _LastState(input_shape[1], output_size, hidden, layers, dropout)


_MODELS: Final[dict[str, Callable[..., nn.Module]]] = {"mlp": mlp, "cnn": cnn, "gru": gru}


def build_model(
    declaration: ModelDeclaration,
    input_shape: Shape,
    output_size: int,
    allowed_packages: tuple[str, ...],
) -> nn.Module:
    """A model for examples of a shape; its weights come from torch's global generator.

    A team's own factory, `package.module:factory`, is called with input_shape, output_size and the
    declared arguments, where the trainer's settings allow the package.
    """
    arguments = plain_arguments(declaration.args)
    if not is_own(declaration.factory):
        factory = _MODELS[choose("model.factory", declaration.factory, _MODELS)]
        return call_with("model.args", factory, (input_shape, output_size), arguments)
    own = import_own("model.factory", declaration.factory, allowed_packages)
    model = call_with("model.args", own, (input_shape, output_size), arguments)
    if not isinstance(model, nn.Module):
        raise refused("model.factory", f"{declaration.factory} made no torch.nn.Module")
    return model
