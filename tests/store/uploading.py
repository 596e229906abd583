"""Begins the upload of a large object and dies by SIGKILL in the middle; run by the tests."""

from __future__ import annotations

import os
import sys
from typing import Any

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from checkpoint_store.minio_blobs import PART_BYTES, SINGLE_PUT_BYTES, MinioBlobStore
from tests.store.committing import die
from tests.store.conftest import ACCESS_KEY, SECRET_KEY

#: More than is uploaded in one call.
LARGE_BYTES = SINGLE_PUT_BYTES + PART_BYTES // 2


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
    kill_in_the_middle(store)
    store.put(key, bytes(LARGE_BYTES))


if __name__ == "__main__":
    main(*sys.argv[1:])
