"""Before the first step: a small checkpoint goes the whole way, and room for large ones is seen."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import (
    CheckpointDraft,
    Target,
    commit_checkpoint,
    read_manifest,
    restore_blobs,
    restored_bytes,
    verify_checkpoint,
)
from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.safetensors_layout import TensorSpec, plan_group
from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import CheckpointPolicy

#: A size at which a broken way shows, and which costs nothing.
_PROBE: Final = TensorSpec("probe", "U8", (64 * 1024,))


@dataclass(frozen=True)
class SnapshotSize:
    """Bytes of one snapshot, when all of the state is there."""

    total: int
    #: Of those, what other steps may change: frozen weights are stored once.
    changing: int


def try_store(store: BlobStore, operation_id: str, attempt: int) -> None:
    """Saves, verifies and loads a small checkpoint of random bytes, and removes it again.

    Raises:
        EverstepError: STORE_UNAVAILABLE, STORE_FULL, STORE_ACCESS_DENIED, STORE_MISCONFIGURED;
            and CHECKPOINT_CORRUPT when the store gives back other bytes than it was given.
    """
    store.check()
    layout = plan_group("weights", [_PROBE])
    (blob,) = layout.blobs
    memory = bytearray(blob.header) + secrets.token_bytes(_PROBE.length)
    written = [blob_key(blob_digest(memory))]
    try:
        with memoryview(memory) as content:
            committed = commit_checkpoint(
                store, _draft(operation_id, attempt, (blob.kind, 0, blob.length)), content
            )
        # The manifest goes first: a listed checkpoint is complete.
        written.insert(0, committed.manifest_key)
        manifest = read_manifest(store, committed.manifest_key, committed.manifest_digest)
        verify_checkpoint(store, manifest)
        loaded = bytearray(restored_bytes(manifest))
        with memoryview(loaded) as target:
            restore_blobs(store, manifest, Target.of(target))
        if loaded != memory:
            raise EverstepError(
                Reason.CHECKPOINT_CORRUPT,
                f"{store.url} gives back other bytes than it was given; check the store",
            )
    except EverstepError as error:
        if error.reason is Reason.STORE_UNAVAILABLE:
            # It would not hear of a removal either.
            written.clear()
        raise
    finally:
        # A policy may forbid a trainer to delete: collecting garbage removes it then.
        with suppress(EverstepError):
            for key in written:
                store.delete(key)


def check_room(
    store: BlobStore, policy: CheckpointPolicy, size: SnapshotSize, resumed: bool
) -> None:
    """Sees that the store has room for the checkpoints that are kept, and one on its way.

    A resumed training has stored most of them already; of it only the next one is asked for.

    Raises:
        EverstepError: STORE_FULL.
    """
    free = store.free_bytes()
    if free is None:
        return
    count = 1 if resumed else policy.keep_last + policy.keep_best + 1
    wanted = size.total - size.changing + count * size.changing
    if wanted > free:
        raise EverstepError(
            Reason.STORE_FULL,
            f"{store.url} has {free / 1e9:.2f} GB free, and {count} checkpoints of this training "
            f"take up to {wanted / 1e9:.2f} GB; free some space (everstep gc), or set "
            "checkpoint.keep_last and checkpoint.keep_best lower",
        )


def _draft(operation_id: str, attempt: int, blob: tuple[str, int, int]) -> CheckpointDraft:
    return CheckpointDraft(
        checkpoint_id=f"preflight-{secrets.token_hex(6)}",
        operation_id=operation_id,
        attempt=attempt,
        epoch=0,
        step=0,
        trigger="PREFLIGHT",
        create_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        parent=None,
        blobs=(blob,),
        state={},
        metrics={},
        monitor="",
        monitor_value=None,
        strategy={},
        strategy_digest="0" * 64,
        data_digest="0" * 64,
        fingerprint={},
    )
