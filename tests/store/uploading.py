"""Begins the upload of a large object and dies by SIGKILL in the middle; run by the tests."""

from __future__ import annotations

import os
import sys
from typing import Any

from checkpoint_store import minio_blobs, open_blob_store
from checkpoint_store.blobs import BlobStore
from checkpoint_store.minio_blobs import MinioBlobStore
from tests.store.committing import die
from tests.store.conftest import ACCESS_KEY, SECRET_KEY

PART_BYTES = 8 * 1024 * 1024
#: Two parts and a half.
LARGE_BYTES = PART_BYTES * 5 // 2


def use_small_parts() -> None:
    """From here on an object that is large is so much smaller that tests can have many."""
    minio_blobs.SINGLE_PUT_BYTES = PART_BYTES  # type: ignore[misc]
    minio_blobs.PART_BYTES = PART_BYTES  # type: ignore[misc]


def kill_in_the_middle(store: BlobStore) -> None:
    """Arms the store: the first part arrives whole, the second never; a file is not moved."""
    if not isinstance(store, MinioBlobStore):
        os.fsync = lambda _descriptor: die()
        return
    client: Any = store._client
    upload_part = client._upload_part
    parts = iter(range(1_000_000))
    client._upload_part = lambda *args, **options: (
        die() if next(parts) else upload_part(*args, **options)
    )


def main(url: str, key: str) -> None:
    store = open_blob_store(url, ACCESS_KEY, SECRET_KEY)
    store.check()
    use_small_parts()
    kill_in_the_middle(store)
    store.put(key, bytes(LARGE_BYTES))


if __name__ == "__main__":
    main(*sys.argv[1:])
