"""SeaweedFS as a process: a second, independent S3 server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from checkpoint_store import open_blob_store


def find_weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    assert found, "SeaweedFS is missing: install the extra dev"
    return found


class SeaweedProcess:
    """One server with everything in one folder, on free ports."""

    def __init__(self, folder: Path, access_key: str, secret_key: str) -> None:
        self._folder = folder
        self._keys = (access_key, secret_key)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        ports = free_ports(8)
        self._port = ports[0]
        names = (
            "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port",
            "volume.port.grpc", "filer.port", "filer.port.grpc",
        )  # fmt: skip
        command = [
            find_weed(), "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=0",
            "-filer", f"-filer.localSocket={self._folder}/filer.sock",
            "-s3", f"-s3.localSocket={self._folder}/s3.sock",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        ]  # fmt: skip
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": self._keys[0],
            "AWS_SECRET_ACCESS_KEY": self._keys[1],
        }
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        store = open_blob_store(self.url("ready"), *self._keys, retry_seconds=60)
        store.check()
        store.put("ready", b"ready")

    def url(self, bucket: str) -> str:
        return f"s3+http://127.0.0.1:{self._port}/{bucket}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
