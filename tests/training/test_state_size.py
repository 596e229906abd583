"""What an optimizer will hold is known before its first step, for every one that there is."""

from __future__ import annotations

import pytest
import torch

from trainer_service.child.state_size import _optimizer_state
from trainer_service.strategies.optimizers import _OPTIMIZERS


def shapes(state: dict[int, dict[str, object]]) -> list[dict[str, tuple[torch.dtype, torch.Size]]]:
    return [
        {
            name: (value.dtype, value.shape)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        for values in state.values()
    ]


@pytest.mark.parametrize("name", sorted(_OPTIMIZERS))
def test_planned_as_it_becomes(name: str) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = _OPTIMIZERS[name](model.parameters(), lr=0.1)
    planned = _optimizer_state(optimizer)["state"]
    # Adagrad has its state from the beginning, the others from their first step.
    assert bool(optimizer.state) == (name == "Adagrad")
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert shapes(planned) == shapes(optimizer.state_dict()["state"])
