"""Digests of a resume context, equal to those of the checkpoint that it came from."""

from __future__ import annotations

from typing import Any

import torch

from checkpoint_store.digests import json_digest, kind_digest, tensor_digest
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.snapshot_memory import DTYPE_WORDS


def context_digests(context: TrainingResumeContext) -> dict[str, str]:
    """By kind of state, and `state` over all of them."""
    digests = {
        kind: kind_digest(
            (
                name,
                tensor_digest(
                    name,
                    DTYPE_WORDS[tensor.dtype],
                    tuple(tensor.shape),
                    _bytes(tensor),
                ),
            )
            for name, tensor in tensors.items()
        )
        for kind, tensors in context.tensors().items()
        if tensors
    }
    state: dict[str, Any] = context.small_state()
    digests["history"] = json_digest(state["history"])
    digests["progress"] = json_digest({k: v for k, v in state.items() if k != "history"})
    digests["state"] = kind_digest(digests.items())
    return digests


def _bytes(tensor: torch.Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
