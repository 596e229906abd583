"""Blobs read again and compared with their names, in memory that no blob's size matters to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blake3 import blake3

from checkpoint_store.blobs import BlobStore
from checkpoint_store.digests import blob_key
from checkpoint_store.manifest import Manifest
from checkpoint_store.manifest_reading import OTHER_BYTES, READING_FAULTS, corrupt_blob
from everstep.errors import EverstepError

#: Read by one request.
RANGE_BYTES: Final = 8 * 1024 * 1024


def blob_fault(
    store: BlobStore, digest: str, length: int, read: Callable[[int], None] = lambda _count: None
) -> str | None:
    """What is wrong with a blob, as in `is missing`; None when its bytes are those of its name.

    Args:
        store: Where it is.
        digest: Its name.
        length: In bytes.
        read: Called with the bytes of each range that was read; what it raises ends the reading.

    Raises:
        EverstepError: STORE_UNAVAILABLE and the like.
    """
    hasher = blake3()
    with memoryview(bytearray(min(length, RANGE_BYTES))) as buffer:
        for begin in range(0, max(length, 1), RANGE_BYTES):
            with buffer[: length - begin] as content:
                try:
                    store.read_into(blob_key(digest), content, begin, length)
                except EverstepError as error:
                    if error.reason not in READING_FAULTS:
                        raise
                    return READING_FAULTS[error.reason]
                hasher.update(content)
                read(len(content))
    return None if hasher.hexdigest() == digest else OTHER_BYTES


def verify_checkpoint(store: BlobStore, manifest: Manifest) -> tuple[int, int]:
    """Reads every blob of a checkpoint once and compares it with its name.

    Returns:
        How many blobs and bytes were read.

    Raises:
        EverstepError: CHECKPOINT_CORRUPT naming the blob.
    """
    lengths = {entry.digest: entry.length for entry in manifest.blobs}
    for digest, length in lengths.items():
        fault = blob_fault(store, digest, length)
        if fault is not None:
            raise corrupt_blob(manifest, blob_key(digest), fault)
    return len(lengths), sum(lengths.values())
