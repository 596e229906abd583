"""The services as processes, for tests that start, kill and restart them."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

#: Generous: two cores, and several tests at a time.
PATIENCE_SECONDS = 90.0


def wait_for(condition: Callable[[], T | None], what: str, patience: float = PATIENCE_SECONDS) -> T:
    """The condition's first true value; fails after a deadline."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        select.select([], [], [], 0.02)
    raise AssertionError(f"waited {patience} s in vain for {what}")


class ServiceProcess:
    """`python -m MODULE` with settings; it keeps its ports over restarts."""

    def __init__(self, module: str, settings: Mapping[str, str], log: Path) -> None:
        self.module = module
        self.settings = {"EVERSTEP_LISTEN": "127.0.0.1:0", **settings}
        self.log = log
        self.address = ""
        self.dashboard_url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None: it was killed or stopped, or not started yet."""
        return None if self._process is None else self._process.pid

    @property
    def process_id(self) -> int:
        assert self.pid is not None
        return self.pid

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the process without waiting for it."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("EVERSTEP_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env={**inherited, **self.settings},
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    def start(self) -> ServiceProcess:
        """Starts the process and waits until it serves."""
        process = self.launch()
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
        line = process.stdout.readline().decode() if ready else ""
        if not line.startswith("listening on "):
            self.kill()
            raise AssertionError(f"{self.module} did not start:\n{self.log.read_text()[-4000:]}")
        self.address = line.removeprefix("listening on ").strip()
        self.settings["EVERSTEP_LISTEN"] = self.address
        if self.settings.get("EVERSTEP_DASHBOARD_LISTEN"):
            said = process.stdout.readline().decode()
            self.dashboard_url = said.removeprefix("dashboard on ").strip()
            self.settings["EVERSTEP_DASHBOARD_LISTEN"] = urlsplit(self.dashboard_url).netloc
        return self

    def exit_code(self) -> int:
        """Waits until the process has ended by itself."""
        assert self._process is not None
        return self._process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            code = process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.module} did not stop") from None
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        return code


@contextmanager
def no_room(service: ServiceProcess) -> Iterator[None]:
    """No file of this process takes another byte."""
    limit = resource.RLIMIT_FSIZE
    process_id = service.process_id
    before = resource.prlimit(process_id, limit, (1, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        # It may have been stopped meanwhile.
        with suppress(ProcessLookupError):
            resource.prlimit(process_id, limit, before)
