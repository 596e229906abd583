"""What checkpoints take in the store, and what a collection would give back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from checkpoint_store.blobs import BlobStore, UnfinishedUpload
from checkpoint_store.digests import blob_key
from control_plane import store_contents
from control_plane.database import checkpoints
from control_plane.database.session import Database


@dataclass(frozen=True)
class Usage:
    """What checkpoints take in the store."""

    checkpoints: int
    #: Of those, the ones found damaged.
    damaged_checkpoints: int
    #: What they would take without sharing blobs, in bytes.
    logical_bytes: int
    #: In the store, and not in the registry: on their way, a direct caller's, or remains.
    unregistered_checkpoints: int
    stored_blobs: int
    stored_bytes: int
    #: What the stored blobs would take more if each checkpoint had its own.
    saved_bytes: int
    #: Those that no manifest names.
    reclaimable_blobs: int
    reclaimable_bytes: int
    #: While there are any, what they need is not known, and nothing is reclaimable.
    unreadable_manifests: int
    unfinished_uploads: int
    unfinished_bytes: int


@dataclass(frozen=True)
class _Contents:
    #: Sizes in bytes, by key.
    blobs: dict[str, int]
    named: set[str]
    #: Bytes of stored blobs, each counted as often as it is named.
    named_bytes: int
    manifest_keys: Sequence[str]
    unreadable: int
    uploads: Sequence[UnfinishedUpload]


async def storage_usage(database: Database, store: BlobStore) -> Usage:
    """Counts; changes nothing."""
    removed = frozenset(await database.read(checkpoints.planned_removals))
    contents = await asyncio.to_thread(_scan, store, removed)
    count, damaged, logical_bytes = await database.read(checkpoints.totals)
    registered = await database.read(checkpoints.manifest_keys)
    live = [key for key in contents.blobs if key in contents.named]
    unnamed = [] if contents.unreadable else contents.blobs.keys() - contents.named
    return Usage(
        checkpoints=count,
        damaged_checkpoints=damaged,
        logical_bytes=logical_bytes,
        unregistered_checkpoints=sum(key not in registered for key in contents.manifest_keys),
        stored_blobs=len(contents.blobs),
        stored_bytes=sum(contents.blobs.values()),
        saved_bytes=contents.named_bytes - sum(contents.blobs[key] for key in live),
        reclaimable_blobs=len(unnamed),
        reclaimable_bytes=sum(contents.blobs[key] for key in unnamed),
        unreadable_manifests=contents.unreadable,
        unfinished_uploads=len(contents.uploads),
        unfinished_bytes=sum(upload.size for upload in contents.uploads),
    )


def _scan(store: BlobStore, removed: frozenset[str]) -> _Contents:
    # Blobs first: what a manifest written meanwhile names is not counted as garbage.
    blobs = {info.key: info.size for info in store.list(store_contents.BLOBS)}
    named: set[str] = set()
    named_bytes = unreadable = 0
    keys = []
    for key, manifest in store_contents.manifests(store, removed):
        keys.append(key)
        if manifest is None:
            unreadable += 1
            continue
        for blob in manifest.blobs:
            name = blob_key(blob.digest)
            named.add(name)
            named_bytes += blobs.get(name, 0)
    uploads = list(store_contents.unfinished_uploads(store))
    return _Contents(blobs, named, named_bytes, keys, unreadable, uploads)
