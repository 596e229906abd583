"""States in memory, as training leaves them in a slot."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoint_store.checkpoints import CheckpointDraft
from checkpoint_store.safetensors_layout import BlobLayout, GroupLayout, TensorSpec, plan_group

STATE: dict[str, Any] = {
    "history": [{"epoch": 0, "train_loss": 0.5}, {"epoch": 1, "train_loss": float("nan")}],
    "step": 12,
    "scheduler": {"last_epoch": 2, "factor": 0.1},
}


@dataclass(frozen=True)
class MemoryState:
    """A layout, and memory filled with it."""

    layout: GroupLayout
    memory: bytearray

    def draft(self, checkpoint_id: str = "ck-12", **changes: Any) -> CheckpointDraft:
        fields: dict[str, Any] = {
            "checkpoint_id": checkpoint_id,
            "operation_id": "op-1",
            "attempt": 1,
            "epoch": 2,
            "step": 12,
            "trigger": "PERIODIC",
            "create_time": "2026-01-02T03:04:05.678+00:00",
            "parent": None,
            "blobs": tuple((blob.kind, blob.offset, blob.length) for blob in self.layout.blobs),
            "state": STATE,
            "metrics": {"val_loss": 0.25},
            "monitor": "val_loss",
            "monitor_value": 0.25,
            "strategy": {"name": "test"},
            "strategy_digest": "0" * 64,
            "data_digest": "1" * 64,
            "fingerprint": {"torch": "2.13.0"},
        }
        return CheckpointDraft(**(fields | changes))

    def kinds(self) -> dict[str, bytes]:
        """The bytes of each blob, by kind and number."""
        return {
            f"{blob.kind}-{number}": bytes(self.memory[blob.offset : blob.offset + blob.length])
            for number, blob in enumerate(self.layout.blobs)
        }


def make_state(seed: int = 7, best_is_last: bool = True, rows: int = 100) -> MemoryState:
    """Weights in two blobs, best weights, optimizer; best weights equal the last ones or not."""
    weights = (
        TensorSpec("body.weight", "F32", (rows, 10)),
        TensorSpec("body.bias", "F32", (rows,)),
        TensorSpec("head.steps", "I64", ()),
    )
    optimizer = (TensorSpec("body.weight.exp_avg", "F32", (rows, 10)),)
    groups = {"weights": weights, "best_weights": weights, "optimizer": optimizer}
    seeds = {"weights": seed, "best_weights": seed if best_is_last else seed + 1, "optimizer": seed}
    return fill(groups, seeds, max_blob_bytes=rows * 40)


def fill(
    groups: Mapping[str, Sequence[TensorSpec]], seeds: Mapping[str, int], max_blob_bytes: int
) -> MemoryState:
    blobs: list[BlobLayout] = []
    end = 0
    for kind, specs in groups.items():
        group = plan_group(kind, specs, end, max_blob_bytes)
        blobs += group.blobs
        end = group.total_bytes
    layout = GroupLayout(tuple(blobs), end)
    memory = bytearray(layout.total_bytes)
    for blob in layout.blobs:
        memory[blob.offset : blob.offset + len(blob.header)] = blob.header
        for tensor in blob.tensors:
            values = random.Random(f"{seeds[blob.kind]} {tensor.spec.name}")
            memory[tensor.offset : tensor.offset + tensor.length] = values.randbytes(tensor.length)
    return MemoryState(layout, memory)
