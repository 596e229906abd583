"""How large a training's snapshots get, known before its first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch

from trainer_service.child.snapshot_memory import total_bytes
from trainer_service.child.trace import CHUNK_STEPS
from trainer_service.child.training_state import TrainingState

#: Of longer traces no more is planned for: a slot grows when it has to.
_MOST_STEPS: Final = 1_000_000


def snapshot_bytes(state: TrainingState, steps: int) -> tuple[int, int]:
    """The length of a slot for a training's last snapshot: with best weights and optimizer.

    Args:
        state: Built, or restored.
        steps: Optimizer steps of the whole training.

    Returns:
        The length, and how much of it steps may change.
    """
    now = state.capture({})
    later = replace(
        now,
        optimizer_state=_optimizer_state(state.optimizer),
        best_model_weights=state.evaluated_model.state_dict(),
        trace=_trace(min(steps, _MOST_STEPS)),
    )
    groups = later.tensor_groups()
    frozen = set(now.module_modes["frozen"])
    changing = [(kind, tensors) for kind, tensors in groups if frozen.isdisjoint(tensors)]
    length = max(total_bytes(groups), total_bytes(now.tensor_groups()))
    return length, total_bytes(changing)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As after the first step, which is taken without any memory."""
    if optimizer.state:
        return optimizer.state_dict()
    twin = _without_memory(optimizer)
    try:
        twin.step()
    except (RuntimeError, AssertionError, TypeError):
        # Not every optimizer can do so; most keep two values for each parameter.
        parameters = [p for group in twin.param_groups for p in group["params"]]
        two = {index: {"first": p, "second": p} for index, p in enumerate(parameters)}
        return {**twin.state_dict(), "state": two}
    return twin.state_dict()


def _without_memory(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer, of parameters and gradients that have shapes and no bytes."""
    groups = []
    for values in optimizer.param_groups:
        parameters = []
        for parameter in values["params"]:
            empty = torch.empty_like(parameter, device="meta", requires_grad=False)
            twin = torch.nn.Parameter(empty, parameter.requires_grad)
            twin.grad = torch.empty_like(empty) if parameter.requires_grad else None
            parameters.append(twin)
        plain = {"fused": False, "foreach": False, "capturable": False}
        groups.append({**values, **plain, "params": parameters})
    twin_optimizer = type(optimizer).__new__(type(optimizer))
    torch.optim.Optimizer.__init__(twin_optimizer, groups, dict(optimizer.defaults))
    return twin_optimizer


def _trace(steps: int) -> dict[str, torch.Tensor]:
    return {
        f"{first:012d}": torch.empty(
            min(CHUNK_STEPS, steps - first), dtype=torch.int64, device="meta"
        )
        for first in range(0, steps, CHUNK_STEPS)
    }
