"""The object store of the benchmark: MinIO's server code on this machine, and how to reach it."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


class Sink(Server):
    """The server that keeps nothing; see `sink`."""

    def empty(self) -> None:
        """It forgets what it was given."""
        connection = http.client.HTTPConnection(self.endpoint)
        connection.request("DELETE", "/")
        connection.getresponse().read()
        connection.close()


@contextmanager
def running_sink() -> Iterator[Sink]:
    """A sink, for as long as the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.checkpoint.sink", str(port)])
    try:
        sink = Sink(f"127.0.0.1:{port}")
        # Its client tries again until it answers.
        sink.store()
        yield sink
    finally:
        process.kill()
        process.wait()
