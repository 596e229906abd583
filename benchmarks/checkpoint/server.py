"""The object store of the benchmark: MinIO's server code on this machine, and how to reach it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from minio import Minio

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore

ACCESS_KEY: Final = "everstep"
SECRET_KEY: Final = "everstep-secret"
BUCKET: Final = "benchmark"


@dataclass(frozen=True)
class Server:
    """A running server."""

    #: host:port.
    endpoint: str

    def client(self) -> Minio:
        """minio-py's client, as it comes."""
        return Minio(self.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False)

    def store(self) -> BlobStore:
        """Everstep's, the same bucket."""
        store = open_blob_store(f"s3+http://{self.endpoint}/{BUCKET}", ACCESS_KEY, SECRET_KEY)
        store.check()
        return store

    def empty(self) -> None:
        """Removes every object."""
        client = self.client()
        for found in client.list_objects(BUCKET, recursive=True):
            client.remove_object(BUCKET, found.object_name or "")

    def now(self) -> float:
        """Seconds since the epoch, as processes on this machine share them."""
        return time.time()
