"""Bringing blobs from a store into memory, each held against its name as it arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from blake3 import blake3

from checkpoint_store.blobs import BlobStore
from checkpoint_store.digests import blob_key
from checkpoint_store.manifest import Manifest
from checkpoint_store.manifest_reading import corrupt_blob
from checkpoint_store.parallel import in_parallel
from everstep.errors import EverstepError, Reason

#: Read by one request: a blob comes in several ranges side by side.
RANGE_BYTES: Final = 16 * 1024 * 1024


class BlobDownload:
    """Reads a checkpoint's blobs.

    Args:
        store: Where from.
        manifest: Of the checkpoint.
        parallelism: Ranges read at a time.
        received: Called with the bytes of each range that has come, from any thread.
    """

    def __init__(
        self,
        store: BlobStore,
        manifest: Manifest,
        parallelism: int,
        received: Callable[[int], None],
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._parallelism = parallelism
        self._received = received

    def run(self, targets: Mapping[str, memoryview]) -> None:
        """Returns with every blob in memory, and whole.

        Args:
            targets: Where the blob of each digest is wanted.

        Raises:
            EverstepError: CHECKPOINT_CORRUPT naming the blob; STORE_UNAVAILABLE and the like.
        """
        ranges = [
            (arrival, begin)
            for arrival in (_Arrival(digest, target) for digest, target in targets.items())
            for begin in range(0, max(len(arrival.target), 1), RANGE_BYTES)
        ]
        in_parallel(self._parallelism, ranges, lambda one: self._read(*one))

    def _read(self, arrival: _Arrival, begin: int) -> None:
        key = blob_key(arrival.digest)
        length = len(arrival.target)
        end = min(begin + RANGE_BYTES, length)
        try:
            with arrival.target[begin:end] as target:
                self._store.read_into(key, target, begin, length)
        except EverstepError as error:
            if error.reason not in (Reason.BLOB_NOT_FOUND, Reason.CHECKPOINT_CORRUPT):
                raise
            is_missing = error.reason is Reason.BLOB_NOT_FOUND
            fault = "is missing" if is_missing else "has another length"
            raise corrupt_blob(self._manifest, key, fault) from None
        if not arrival.came(begin, end):
            raise corrupt_blob(self._manifest, key, "holds other bytes than were written")
        self._received(end - begin)


class _Arrival:
    """A blob on its way: its ranges come in any order, and are hashed in their own."""

    def __init__(self, digest: str, target: memoryview) -> None:
        self.digest = digest
        self.target = target
        self._hasher = blake3()
        self._hashed = 0
        #: Ranges that have come before one that begins earlier: their ends by their beginnings.
        self._early: dict[int, int] = {}
        self._hashing = threading.Lock()

    def came(self, begin: int, end: int) -> bool:
        """A range is there; False when the blob is complete and not the one that was named."""
        with self._hashing:
            self._early[begin] = end
            while (begin := self._hashed) in self._early:
                end = self._early.pop(begin)
                with self.target[begin:end] as content:
                    self._hasher.update(content)
                self._hashed = end
                if begin == end:
                    break
            complete = self._hashed == len(self.target)
            return not complete or self._hasher.hexdigest() == self.digest
