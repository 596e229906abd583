"""Bringing blobs from a store into memory, each held against its name as it arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from checkpoint_store.blobs import BlobStore
from checkpoint_store.digests import blob_key
from checkpoint_store.manifest import Manifest
from checkpoint_store.manifest_reading import OTHER_BYTES, READING_FAULTS, corrupt_blob
from checkpoint_store.parallel import in_parallel
from everstep.errors import EverstepError

#: Read by one request: a blob comes in several ranges side by side.
RANGE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """Memory that blobs are read into."""

    memory: memoryview
    #: Puts bytes to a place in it. Where memory is a file's, writing to the file fills it without
    #: a fault for each page.
    write: Callable[[int, memoryview], None]

    @classmethod
    def of(cls, memory: memoryview) -> Target:
        """Memory that is simply there."""

        def write(offset: int, piece: memoryview) -> None:
            memory[offset : offset + len(piece)] = piece

        return cls(memory, write)


class BlobDownload:
    """Reads a checkpoint's blobs.

    Args:
        store: Where from.
        manifest: Of the checkpoint.
        target: Where to.
        parallelism: Ranges read at a time.
        received: Called with the bytes of each range that has come, from any thread.
    """

    def __init__(
        self,
        store: BlobStore,
        manifest: Manifest,
        target: Target,
        parallelism: int,
        received: Callable[[int], None],
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._target = target
        self._parallelism = parallelism
        self._received = received

    def run(self, places: Mapping[str, tuple[int, int]]) -> None:
        """Returns with every blob in memory, and whole.

        Args:
            places: By digest, the offset and the length of each blob in the memory.

        Raises:
            EverstepError: CHECKPOINT_CORRUPT naming the blob; STORE_UNAVAILABLE and the like.
        """
        arrivals = [
            _Arrival(digest, self._target.memory, offset, length)
            for digest, (offset, length) in places.items()
        ]
        ranges = [
            (arrival, begin)
            for arrival in arrivals
            for begin in range(0, max(arrival.length, 1), RANGE_BYTES)
        ]
        in_parallel(self._parallelism, ranges, lambda one: self._read(*one))

    def _read(self, arrival: _Arrival, begin: int) -> None:
        key = blob_key(arrival.digest)
        end = min(begin + RANGE_BYTES, arrival.length)

        def take(position: int, piece: memoryview) -> None:
            self._target.write(arrival.offset + begin + position, piece)

        try:
            self._store.read_range(key, take, begin, end - begin, arrival.length)
        except EverstepError as error:
            if error.reason not in READING_FAULTS:
                raise
            raise corrupt_blob(self._manifest, key, READING_FAULTS[error.reason]) from None
        if not arrival.came(begin, end):
            raise corrupt_blob(self._manifest, key, OTHER_BYTES)
        self._received(end - begin)


class _Arrival:
    """A blob on its way: its ranges come in any order, and are hashed in their own."""

    def __init__(self, digest: str, memory: memoryview, offset: int, length: int) -> None:
        self.digest = digest
        #: Where it stands in the memory.
        self.offset = offset
        self.length = length
        self._memory = memory
        self._hasher = blake3()
        self._hashed = 0
        #: Ranges that have come before one that begins earlier: their ends by their beginnings.
        self._early: dict[int, int] = {}
        self._hashing = threading.Lock()

    def came(self, begin: int, end: int) -> bool:
        """A range is there; False when the blob is complete and not the one that was named."""
        with self._hashing:
            self._early[begin] = end
            while self._hashed in self._early:
                begin, self._hashed = self._hashed, self._early.pop(self._hashed)
                with self._memory[self.offset + begin : self.offset + self._hashed] as content:
                    self._hasher.update(content)
            complete = self._hashed == self.length
            return not complete or self._hasher.hexdigest() == self.digest
