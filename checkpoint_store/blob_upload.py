"""Bringing blobs from memory into a store, without those that it has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from checkpoint_store.blobs import BlobInfo, BlobStore
from checkpoint_store.digests import blob_digest, blob_key, tensor_digest
from checkpoint_store.long_uploads import REUSE_SECONDS, UploadTime
from checkpoint_store.manifest import BlobEntry, TensorEntry
from checkpoint_store.manifest_reading import read_manifest
from checkpoint_store.parallel import in_parallel
from checkpoint_store.safetensors_layout import parse_header
from checkpoint_store.store_clock import age_at, store_time
from checkpoint_store.sweeps import await_sweeps
from everstep.errors import EverstepError, Reason

#: A kind, and where its safetensors file stands in memory: offset and length in bytes.
MemoryBlob = tuple[str, int, int]


class BlobUpload:
    """Brings a checkpoint's blobs into the store, leaving out what it has.

    Each is hashed and goes on its way while others are hashed.

    Args:
        store: Where to.
        parent: Key of the manifest before.
        memory: Holds the blobs; not written meanwhile.
        parallelism: Blobs at a time.
        brought: Called with the bytes of each blob that is in the store, from any thread.
        upload_time: Of the whole upload.
    """

    def __init__(
        self,
        store: BlobStore,
        parent: str | None,
        memory: memoryview,
        parallelism: int,
        brought: Callable[[int], None],
        upload_time: UploadTime,
    ) -> None:
        self._store = store
        self._parent = parent
        self._memory = memory
        self._parallelism = parallelism
        self._brought = brought
        self._upload_time = upload_time
        #: Guards what follows.
        self._changing = threading.Lock()
        self._seen: set[str] = set()
        #: Where the bytes stand of what was found in the store.
        self._found: dict[str, MemoryBlob] = {}
        self._uploaded_bytes = 0
        self._named_by_parent: frozenset[str] | None = None
        #: By the store's clock, when it was first asked for.
        self._store_time: datetime | None = None

    def run(self, blobs: Sequence[MemoryBlob]) -> tuple[tuple[BlobEntry, ...], int]:
        """Returns with every blob in the store.

        Returns:
            What a manifest says of each, in their order; and the bytes that were uploaded.
        """
        entries = in_parallel(self._parallelism, blobs, self._bring)
        if self._found:
            await_sweeps(self._store)
        # A collection that began earlier may have removed what was there a moment ago.
        in_parallel(self._parallelism, self._found.items(), self._bring_again)
        return tuple(entries), self._uploaded_bytes

    def _bring(self, blob: MemoryBlob) -> BlobEntry:
        entry = _hash_blob(self._memory, blob)
        with self._changing:
            is_new = entry.digest not in self._seen
            self._seen.add(entry.digest)
        if is_new and not self._is_reusable(entry.digest, blob):
            self._put(entry.digest, blob)
        self._brought(entry.length)
        return entry

    def _bring_again(self, found: tuple[str, MemoryBlob]) -> None:
        """Uploads what was found in the store, should it be gone meanwhile."""
        digest, blob = found
        if not _is_whole(self._store.stat(blob_key(digest)), blob[2]):
            self._put(digest, blob)

    def _is_reusable(self, digest: str, blob: MemoryBlob) -> bool:
        info = self._store.stat(blob_key(digest))
        if info is None or not _is_whole(info, blob[2]):
            return False
        is_reusable = digest in self._read_parent() or self._is_young(info)
        with self._changing:
            self._found[digest] = blob
        return is_reusable

    def _is_young(self, info: BlobInfo) -> bool:
        """Whether no collection removes it soon; by the store's clock, ours may be any time."""
        with self._changing:
            if self._store_time is None:
                self._store_time = store_time(self._store)
            # What was put since is younger than it, and no less young for that.
            return age_at(self._store_time, info) <= REUSE_SECONDS

    def _read_parent(self) -> frozenset[str]:
        """The digests that the parent names; read when they are first asked for."""
        with self._changing:
            if self._named_by_parent is None:
                self._named_by_parent = _named_by(self._store, self._parent)
            return self._named_by_parent

    def _put(self, digest: str, blob: MemoryBlob) -> None:
        _, offset, length = blob
        self._upload_time.check()
        with self._memory[offset : offset + length] as content:
            self._store.put(blob_key(digest), content)
        with self._changing:
            self._uploaded_bytes += length


def _hash_blob(memory: memoryview, blob: MemoryBlob) -> BlobEntry:
    kind, offset, length = blob
    with memory[offset : offset + length] as content:
        tensors = []
        for tensor in parse_header(content):
            spec = tensor.spec
            with content[tensor.offset : tensor.offset + tensor.length] as data:
                digest = tensor_digest(spec.name, spec.dtype, spec.shape, data)
            tensors.append(
                TensorEntry(spec.name, spec.dtype, spec.shape, tensor.offset, tensor.length, digest)
            )
        return BlobEntry(kind, blob_digest(content), length, tuple(tensors))


def _named_by(store: BlobStore, parent: str | None) -> frozenset[str]:
    if parent is None:
        return frozenset()
    try:
        manifest = read_manifest(store, parent)
    except EverstepError as error:
        if error.reason in (Reason.CHECKPOINT_NOT_FOUND, Reason.CHECKPOINT_CORRUPT):
            return frozenset()
        raise
    return frozenset(entry.digest for entry in manifest.blobs)


def _is_whole(info: BlobInfo | None, length: int) -> bool:
    return info is not None and info.size == length
