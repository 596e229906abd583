"""From store to slot: a checkpoint is read back, verified as it arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import (
    Target,
    read_manifest,
    restore_blobs,
    restored_bytes,
    stored_bytes,
)
from checkpoint_store.manifest import Manifest
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from trainer_service.child.pipe import SlotBlob, SlotContent
from trainer_service.provenance import proof_wanted
from trainer_service.slots import MemorySlots


@dataclass(frozen=True)
class RestoredCheckpoint:
    """A checkpoint in memory."""

    manifest: Manifest
    content: SlotContent
    #: An earlier checkpoint of the same training, where a proof wants one and there is one.
    earlier: SlotContent | None = None


def restore(
    store: BlobStore,
    reference: CheckpointReference,
    slots: MemorySlots,
    received: Callable[[int, int], None] = lambda _bytes, _total: None,
) -> RestoredCheckpoint:
    """Reads a checkpoint into the first slot, where it becomes the newest snapshot.

    Args:
        store: Where from.
        reference: Of the checkpoint.
        slots: Where to.
        received: Called with the bytes that have come, and how many come in all, from any thread.

    Raises:
        EverstepError: CHECKPOINT_NOT_FOUND, CHECKPOINT_CORRUPT, STORE_UNAVAILABLE.
    """
    manifest = read_manifest(store, reference.manifest_key, reference.manifest_digest)
    before = _before(store, manifest) if proof_wanted(manifest.fingerprint) else None
    wanted = [manifest] if before is None else [manifest, before]
    total = sum(map(stored_bytes, wanted))
    contents = [
        _read_into(store, one, slots, slot, lambda count: received(count, total))
        for slot, one in enumerate(wanted)
    ]
    slots.completed(contents[0])
    return RestoredCheckpoint(manifest, *contents)


def _read_into(
    store: BlobStore,
    manifest: Manifest,
    slots: MemorySlots,
    slot: int,
    received: Callable[[int], None],
) -> SlotContent:
    with slots.filling(slot, restored_bytes(manifest)) as (memory, write):
        placed = restore_blobs(store, manifest, Target(memory, write), received=received)
    return SlotContent(slot, tuple(SlotBlob(*blob) for blob in placed), manifest.state)


def _before(store: BlobStore, manifest: Manifest) -> Manifest | None:
    """The nearest earlier checkpoint of the same training that is still there and whole."""
    before = manifest
    while before.parent is not None:
        try:
            before = read_manifest(store, before.parent)
        except EverstepError as error:
            if error.reason in (Reason.CHECKPOINT_NOT_FOUND, Reason.CHECKPOINT_CORRUPT):
                return None
            raise
        if before.operation_id != manifest.operation_id:
            return None
        if before.step < manifest.step:
            return before
    return None


def check_strategy_digest(manifest: Manifest, strategy_digest: str) -> None:
    """Refuses to go on with another strategy than the one that the checkpoint was made with.

    Raises:
        EverstepError: ENVIRONMENT_MISMATCH.
    """
    if manifest.strategy_digest != strategy_digest:
        raise EverstepError(
            Reason.ENVIRONMENT_MISMATCH,
            f"checkpoint {manifest.checkpoint_id} was made with another strategy "
            f"({manifest.strategy_digest[:12]}, not {strategy_digest[:12]}); resume with the "
            "strategy it was made with, or fork it",
            metadata={"differences": "strategy"},
        )
