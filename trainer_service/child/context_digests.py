"""Digests of a resume context, equal to those of the checkpoint that it came from."""

from __future__ import annotations

from typing import Any

import torch

from checkpoint_store.digests import json_digest, kind_digest, tensor_digest
from checkpoint_store.parallel import in_parallel
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.snapshot_memory import DTYPE_WORDS


def context_digests(context: TrainingResumeContext) -> dict[str, str]:
    """By kind of state, and `state` over all of them."""
    kinds = {kind: tensors for kind, tensors in context.tensors().items() if tensors}
    named = [(kind, name, tensor) for kind in kinds for name, tensor in kinds[kind].items()]
    found: dict[str, list[tuple[str, str]]] = {kind: [] for kind in kinds}
    for kind, name, digest in in_parallel(torch.get_num_threads(), named, _digest):
        found[kind].append((name, digest))
    digests = {kind: kind_digest(entries) for kind, entries in found.items()}
    state: dict[str, Any] = context.small_state()
    digests["history"] = json_digest(state["history"])
    digests["progress"] = json_digest({k: v for k, v in state.items() if k != "history"})
    digests["state"] = kind_digest(digests.items())
    return digests


def _digest(named: tuple[str, str, torch.Tensor]) -> tuple[str, str, str]:
    kind, name, tensor = named
    dtype, shape = DTYPE_WORDS[tensor.dtype], tuple(tensor.shape)
    return kind, name, tensor_digest(name, dtype, shape, _bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
