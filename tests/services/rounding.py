"""A team's own model that computes otherwise where a variable says so, as a processor might."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from trainer_service.strategies.models import cnn


class Rounding(nn.Module):
    """Off by the last bit of a float32."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if os.environ.get("TEST_ROUNDS_OTHERWISE"):
            return inputs * (1 + 2**-23)
        return inputs


def rounding_cnn(input_shape: tuple[int, ...], output_size: int, **arguments: Any) -> nn.Module:
    return nn.Sequential(Rounding(), cnn(input_shape, output_size, **arguments))
