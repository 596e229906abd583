"""Real checkpoints in a real store, for tests of what becomes of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
from google.protobuf.duration_pb2 import Duration
from safetensors.numpy import save

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import CheckpointDraft, commit_checkpoint
from everstep.control.v1.checkpoints_pb2 import CollectGarbageRequest, CollectGarbageResponse
from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED
from everstep.training.v1.checkpoint_pb2 import Checkpoint, CheckpointReference
from tests.control_plane.conftest import Client, strategy
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining

HOUR = 3600


def store_checkpoint(
    store: BlobStore,
    training: ScriptedTraining,
    step: int,
    monitor_value: float | None = None,
    weights_seed: int | None = None,
) -> Checkpoint:
    """A real checkpoint: weights that differ by step (or seed), an optimizer that never does."""
    seed = step if weights_seed is None else weights_seed
    weights = save({"w": np.full((8, 8), seed, dtype=np.float32)})
    optimizer = save({"m": np.zeros((8, 8), dtype=np.float32)})
    draft = CheckpointDraft(
        checkpoint_id=f"ck-{step}-{training.operation_id}-{training.attempt}",
        operation_id=training.operation_id,
        attempt=training.attempt,
        epoch=step // 10,
        step=step,
        trigger="PERIODIC",
        create_time="2026-01-02T03:04:05.678+00:00",
        parent=None,
        blobs=(("weights", 0, len(weights)), ("optimizer", len(weights), len(optimizer))),
        state={"step": step},
        metrics={},
        monitor="val_loss",
        monitor_value=monitor_value,
        strategy={},
        strategy_digest="0" * 64,
        data_digest="1" * 64,
        fingerprint={},
    )
    committed = commit_checkpoint(store, draft, memoryview(weights + optimizer))
    message = Checkpoint(
        reference=CheckpointReference(
            checkpoint_id=draft.checkpoint_id,
            manifest_key=committed.manifest_key,
            manifest_digest=committed.manifest_digest,
        ),
        operation_id=training.operation_id,
        attempt=training.attempt,
        epoch=draft.epoch,
        step=step,
        logical_bytes=committed.manifest.logical_bytes,
        monitor="val_loss",
    )
    if monitor_value is not None:
        message.monitor_value = monitor_value
    return message


def manifests(store: BlobStore) -> set[str]:
    return {info.key for info in store.list("operations/")}


def age(folder: Path, seconds: float, chosen: Callable[[str], bool] = lambda _key: True) -> None:
    """Makes what is in the store older."""
    for path in folder.rglob("*"):
        if path.is_file() and chosen(path.relative_to(folder).as_posix()):
            then = time.time() - seconds
            os.utime(path, (then, then))


async def collect(
    client: Client, *, dry_run: bool = False, grace: float | None = None
) -> CollectGarbageResponse:
    request = CollectGarbageRequest(dry_run=dry_run)
    if grace is not None:
        duration = Duration()
        duration.FromTimedelta(timedelta(seconds=grace))
        request.grace.CopyFrom(duration)
    return await client.checkpoints.CollectGarbage(request, timeout=30)


async def finished_with(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, steps: list[int]
) -> tuple[str, list[Checkpoint]]:
    """A completed operation with checkpoints at these steps, all of them kept."""
    operation_id = await client.create(strategy=strategy(checkpoint={"keep_last": 100}))
    training = await trainer.begun(operation_id)
    made = [store_checkpoint(store, training, step) for step in steps]
    for checkpoint in made:
        training.commit(checkpoint)
    training.complete(made[-1])
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    return operation_id, made
