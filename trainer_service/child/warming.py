"""What a spare process does before there is work, so that a training does not wait for it."""

from __future__ import annotations

import torch


def warm_up() -> None:
    """Makes torch import what it would import with the first optimizer: a second's work.

    Draws no random number and starts no thread.
    """
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=0.1).step()
