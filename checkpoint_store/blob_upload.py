"""Bringing blobs from memory into a store, without those that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from checkpoint_store.blobs import BlobInfo, BlobStore
from checkpoint_store.digests import blob_key
from checkpoint_store.manifest_reading import read_manifest
from checkpoint_store.parallel import in_parallel
from everstep.errors import EverstepError, Reason

#: A kind, and where its safetensors file stands in memory: offset and length in bytes.
MemoryBlob = tuple[str, int, int]

#: Garbage collection spares what is younger than its grace (an hour). A stored blob older than
#: this is relied on only if the parent checkpoint, which is kept meanwhile, names it too.
REUSE_SECONDS: Final = 900


class BlobUpload:
    """Brings a checkpoint's blobs into the store, leaving out what it has."""

    def __init__(
        self, store: BlobStore, parent: str | None, memory: memoryview, parallelism: int
    ) -> None:
        self._store = store
        self._parent = parent
        self._memory = memory
        self._parallelism = parallelism

    def run(self, blobs: dict[str, MemoryBlob]) -> int:
        """Returns with every blob in the store.

        Args:
            blobs: Where the bytes of each digest stand in memory.

        Returns:
            Bytes that were uploaded.
        """
        missing = self._missing(blobs)
        self._upload(missing, blobs)
        reused = [digest for digest in blobs if digest not in missing]
        # A collection that began earlier may have removed what looked reusable a moment ago.
        gone = [
            digest
            for digest, info in zip(reused, self._stat(reused), strict=True)
            if info is None or info.size != blobs[digest][2]
        ]
        self._upload(gone, blobs)
        return sum(blobs[digest][2] for digest in (*missing, *gone))

    def _missing(self, blobs: dict[str, MemoryBlob]) -> list[str]:
        """The digests that have to be uploaded."""
        found = dict(zip(blobs, self._stat(blobs), strict=True))
        stored = {
            digest: info
            for digest, info in found.items()
            if info is not None and info.size == blobs[digest][2]
        }
        now = datetime.now(UTC)
        old = {
            digest
            for digest, info in stored.items()
            if (now - info.modified).total_seconds() > REUSE_SECONDS
        }
        if old:
            old -= self._named_by_parent()
        return [digest for digest in blobs if digest not in stored or digest in old]

    def _named_by_parent(self) -> set[str]:
        if self._parent is None:
            return set()
        try:
            parent = read_manifest(self._store, self._parent)
        except EverstepError as error:
            if error.reason in (Reason.CHECKPOINT_NOT_FOUND, Reason.CHECKPOINT_CORRUPT):
                return set()
            raise
        return {entry.digest for entry in parent.blobs}

    def _stat(self, digests: Iterable[str]) -> list[BlobInfo | None]:
        keys = [blob_key(digest) for digest in digests]
        return in_parallel(self._parallelism, keys, self._store.stat)

    def _upload(self, digests: Sequence[str], blobs: dict[str, MemoryBlob]) -> None:
        def upload(digest: str) -> None:
            _, offset, length = blobs[digest]
            with self._memory[offset : offset + length] as content:
                self._store.put(blob_key(digest), content)

        in_parallel(self._parallelism, digests, upload)
