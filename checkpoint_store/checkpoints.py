"""Checkpoints: from memory to the store, blobs first and the manifest last; and back, verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from checkpoint_store.blob_download import BlobDownload, Target
from checkpoint_store.blob_upload import BlobUpload, MemoryBlob
from checkpoint_store.blobs import BlobStore
from checkpoint_store.digests import blob_digest, json_digest, kind_digest
from checkpoint_store.lineage import LineageEvent
from checkpoint_store.long_uploads import UploadTime
from checkpoint_store.manifest import BlobEntry, Manifest, manifest_key
from checkpoint_store.manifest_reading import read_manifest
from checkpoint_store.safetensors_layout import align
from checkpoint_store.verification import verify_checkpoint

__all__ = [
    "CheckpointDraft",
    "CommittedCheckpoint",
    "MemoryBlob",
    "Target",
    "commit_checkpoint",
    "read_manifest",
    "restore_blobs",
    "restored_bytes",
    "state_digests",
    "stored_bytes",
    "verify_checkpoint",
]

#: Names in a manifest's digests that are no kind of tensors.
_SMALL_STATE: Final = frozenset({"history", "progress", "state"})


@dataclass(frozen=True)
class CheckpointDraft:
    """A manifest before its blobs are hashed; the fields are explained there."""

    checkpoint_id: str
    operation_id: str
    attempt: int
    epoch: int
    step: int
    trigger: str
    create_time: str
    parent: str | None
    blobs: tuple[MemoryBlob, ...]
    state: dict[str, Any]
    metrics: dict[str, float]
    monitor: str
    monitor_value: float | None
    strategy: dict[str, Any]
    strategy_digest: str
    data_digest: str
    fingerprint: dict[str, str]
    lineage: tuple[LineageEvent, ...] = ()


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A checkpoint that is complete in the store."""

    manifest: Manifest
    manifest_key: str
    #: BLAKE3 of the manifest's bytes.
    manifest_digest: str
    #: Bytes of blobs that the store did not have yet.
    uploaded_bytes: int


def commit_checkpoint(
    store: BlobStore,
    draft: CheckpointDraft,
    memory: memoryview,
    parallelism: int = 2,
    brought: Callable[[int], None] = lambda _bytes: None,
) -> CommittedCheckpoint:
    """Stores a state that stands in memory as safetensors files.

    Cut off anywhere, it leaves blobs that nothing names, never half a checkpoint. Memory is read
    in place; no copy of the whole is made.

    Args:
        store: Where to.
        draft: What the manifest says.
        memory: Holds the draft's blobs; not written while this runs.
        parallelism: Blobs hashed and uploaded at a time.
        brought: Called with the bytes of each blob that is in the store, from any thread.

    Raises:
        EverstepError: STORE_UNAVAILABLE and the like; CHECKPOINT_CORRUPT when memory holds no
            safetensors file where the draft says so.
        ValueError: When a blob is outside the memory.
    """
    for kind, offset, length in draft.blobs:
        if kind in _SMALL_STATE or not 0 <= offset <= offset + length <= len(memory):
            raise ValueError(f"no blob {kind} at {offset} + {length} in {len(memory)} bytes")
    with UploadTime(store) as upload_time:
        upload = BlobUpload(store, draft.parent, memory, parallelism, brought, upload_time)
        entries, uploaded_bytes = upload.run(draft.blobs)
        manifest = _complete(draft, entries)
        content = manifest.to_bytes()
        key = manifest_key(draft.operation_id, draft.attempt, draft.checkpoint_id)
        upload_time.check()
        store.put(key, content)
    return CommittedCheckpoint(manifest, key, blob_digest(content), uploaded_bytes)


def restored_bytes(manifest: Manifest) -> int:
    """How much memory `restore_blobs` needs."""
    return max((offset + length for _, offset, length in _placed(manifest)), default=0)


def stored_bytes(manifest: Manifest) -> int:
    """Bytes of a checkpoint's blobs, each counted once: what a restore reads."""
    return sum({blob.digest: blob.length for blob in manifest.blobs}.values())


def restore_blobs(
    store: BlobStore,
    manifest: Manifest,
    target: Target,
    parallelism: int = 4,
    received: Callable[[int], None] = lambda _bytes: None,
) -> tuple[MemoryBlob, ...]:
    """Reads a checkpoint's blobs into memory, each verified.

    Args:
        store: Where from.
        manifest: Of the checkpoint.
        target: At least `restored_bytes` long.
        parallelism: Ranges of blobs read at a time.
        received: Called with the bytes of each range that has come, from any thread.

    Returns:
        Where each blob of the manifest stands now, in its order; offsets are multiples of 64.

    Raises:
        EverstepError: CHECKPOINT_CORRUPT naming the blob; STORE_UNAVAILABLE and the like.
        ValueError: When the memory is too short.
    """
    placed = _placed(manifest)
    memory = target.memory
    if restored_bytes(manifest) > len(memory):
        raise ValueError(f"{len(memory)} bytes are too few for {restored_bytes(manifest)}")
    first: dict[str, tuple[int, int]] = {}
    for entry, (_, offset, length) in zip(manifest.blobs, placed, strict=True):
        first.setdefault(entry.digest, (offset, length))
    BlobDownload(store, manifest, target, parallelism, received).run(first)
    for entry, (_, offset, length) in zip(manifest.blobs, placed, strict=True):
        source, _ = first[entry.digest]
        if source != offset:
            with memory[source : source + length] as content:
                target.write(offset, content)
    return placed


def _complete(draft: CheckpointDraft, entries: Sequence[BlobEntry]) -> Manifest:
    return Manifest(
        checkpoint_id=draft.checkpoint_id,
        operation_id=draft.operation_id,
        attempt=draft.attempt,
        epoch=draft.epoch,
        step=draft.step,
        trigger=draft.trigger,
        create_time=draft.create_time,
        parent=draft.parent,
        blobs=tuple(entries),
        state=draft.state,
        digests=state_digests(entries, draft.state),
        metrics=draft.metrics,
        monitor=draft.monitor,
        monitor_value=draft.monitor_value,
        strategy=draft.strategy,
        strategy_digest=draft.strategy_digest,
        data_digest=draft.data_digest,
        fingerprint=draft.fingerprint,
        lineage=draft.lineage,
    )


def state_digests(entries: Iterable[BlobEntry], state: dict[str, Any]) -> dict[str, str]:
    """The digests that two equal states share, however their tensors are spread over blobs.

    One for each kind of tensors; `history`, and `progress` for the rest of the small state; and
    `state` over all of them.
    """
    tensors: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        tensors.setdefault(entry.kind, []).extend(
            (tensor.name, tensor.digest) for tensor in entry.tensors
        )
    digests = {kind: kind_digest(listed) for kind, listed in tensors.items()}
    digests["history"] = json_digest(state.get("history", []))
    digests["progress"] = json_digest({k: v for k, v in state.items() if k != "history"})
    digests["state"] = kind_digest(digests.items())
    return digests


def _placed(manifest: Manifest) -> tuple[MemoryBlob, ...]:
    placed: list[MemoryBlob] = []
    end = 0
    for entry in manifest.blobs:
        offset = align(end)
        placed.append((entry.kind, offset, entry.length))
        end = offset + entry.length
    return tuple(placed)
