"""From store to slot: a checkpoint is read back, verified as it arrives."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest, restore_blobs, restored_bytes
from checkpoint_store.manifest import Manifest
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from trainer_service.child.pipe import SlotBlob, SlotContent
from trainer_service.slots import MemorySlots


@dataclass(frozen=True)
class RestoredCheckpoint:
    """A checkpoint in memory."""

    manifest: Manifest
    content: SlotContent


def restore(
    store: BlobStore, reference: CheckpointReference, slots: MemorySlots
) -> RestoredCheckpoint:
    """Reads a checkpoint into the first slot, where it becomes the newest snapshot.

    Raises:
        EverstepError: CHECKPOINT_NOT_FOUND, CHECKPOINT_CORRUPT, STORE_UNAVAILABLE.
    """
    manifest = read_manifest(store, reference.manifest_key, reference.manifest_digest)
    slots.reserve(0, restored_bytes(manifest))
    with slots.view(0) as memory:
        placed = restore_blobs(store, manifest, memory)
    content = SlotContent(0, tuple(SlotBlob(*blob) for blob in placed), manifest.state)
    slots.newest = content
    return RestoredCheckpoint(manifest, content)


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
            "strategy it was made with, or train the other one from the beginning",
            metadata={"differences": "strategy"},
        )
