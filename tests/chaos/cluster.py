"""A control plane, trainers and MinIO's server code, each reached over a link that can break."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from everstep.object_store_process import MinioProcess
from tests.chaos.links import Link, Network
from tests.services.processes import ServiceProcess

ACCESS_KEY: Final = "everstep"
SECRET_KEY: Final = "everstep-secret"
BUCKET: Final = "chaos"
LEASE_SECONDS: Final = 4.0
#: A store that is being started on a busy machine.
STORE_PATIENCE_SECONDS: Final = 60.0

CONTROL_PLANE: Final = "control-plane"
STORE: Final = "store"


class Cluster:
    """All processes of one trial, and the links between them; a context manager.

    Args:
        folder: Everything is kept in it: logs, database, journals, the store.
        trainers: How many.
    """

    def __init__(self, folder: Path, trainers: int) -> None:
        self.folder = folder
        self.trainer_names = [f"trainer-{number}" for number in range(1, trainers + 1)]
        self.services: dict[str, ServiceProcess] = {}
        self.links: dict[str, Link] = {}
        self.minio = MinioProcess(folder / STORE, 0, ACCESS_KEY, SECRET_KEY)
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup:
            self._start(self._cleanup.enter_context(Network()))
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def direct_address(self) -> str:
        """The control plane's own, which no fault of a link touches."""
        return self.services[CONTROL_PLANE].address

    @property
    def client_address(self) -> str:
        """The control plane's, as clients reach it over a link."""
        return self.links["client to control-plane"].address

    @property
    def direct_store_url(self) -> str:
        """The store's own, which no fault of a link touches."""
        return self.minio.url(BUCKET)

    def kill(self, name: str) -> None:
        """SIGKILL to a service or the store, and gone."""
        if name == STORE:
            if self.minio.pid is not None:
                os.kill(self.minio.pid, signal.SIGKILL)
            self.minio.stop()
        else:
            self.services[name].kill()

    def stop(self, name: str) -> None:
        """SIGTERM to a service; returns when it has ended."""
        self.services[name].stop()

    def start(self, name: str) -> None:
        """Starts what was killed or stopped, and waits until it serves."""
        if name == STORE:
            self.minio.start()
            self.minio.wait_ready(STORE_PATIENCE_SECONDS)
        else:
            self.services[name].start()

    def suspend(self, name: str, *, with_children: bool) -> None:
        """SIGSTOP; a trainer's training processes, too, as when its machine is frozen."""
        for process in self._processes(name, with_children):
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def wake(self, name: str) -> None:
        """SIGCONT to all that was suspended."""
        for process in self._processes(name, with_children=True):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def training_processes(self, name: str) -> list[psutil.Process]:
        """A trainer's children: those that train, and those that wait for work."""
        return self._processes(name, with_children=True)[1:]

    def kill_training(self, process_id: int) -> bool:
        """SIGKILL to a training process; False when no trainer has such a child."""
        for name in self.trainer_names:
            for process in self.training_processes(name):
                if process.pid == process_id:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        return True
        return False

    def _processes(self, name: str, with_children: bool) -> list[psutil.Process]:
        number = self.minio.pid if name == STORE else self.services[name].pid
        if number is None:
            return []
        try:
            process = psutil.Process(number)
            return [process, *(process.children(recursive=True) if with_children else ())]
        except psutil.NoSuchProcess:
            return []

    def _start(self, network: Network) -> None:
        self._cleanup.callback(self.minio.stop, 0)
        self.minio.start()
        self.minio.wait_ready(STORE_PATIENCE_SECONDS)
        self._add_service(
            CONTROL_PLANE,
            "control_plane",
            {
                **self._store_settings(network, CONTROL_PLANE),
                "EVERSTEP_DATABASE_URL": f"sqlite:///{self.folder / 'control-plane.db'}",
                "EVERSTEP_LEASE_SECONDS": str(LEASE_SECONDS),
            },
        ).start()
        self._link(network, "client", CONTROL_PLANE, self.direct_address)
        for name in self.trainer_names:
            self._start_trainer(network, name)

    def _start_trainer(self, network: Network, name: str) -> None:
        to_control_plane = self._link(network, name, CONTROL_PLANE, self.direct_address)
        to_trainer = self._link(network, CONTROL_PLANE, name, "")
        trainer = self._add_service(
            name,
            "trainer_service",
            {
                **self._store_settings(network, name),
                "EVERSTEP_TRAINER_ID": name,
                "EVERSTEP_CONTROL_PLANE": to_control_plane.address,
                "EVERSTEP_ADVERTISE": to_trainer.address,
                "EVERSTEP_STATE_DIR": str(self.folder / name),
                "EVERSTEP_DATA_ROOT": str(self.folder / "data"),
                "EVERSTEP_THREADS": "1",
                "EVERSTEP_SPARE_CHILDREN": "1",
                "EVERSTEP_STOP_GRACE_SECONDS": "5",
            },
        ).start()
        to_trainer.target = trainer.address

    def _add_service(self, name: str, module: str, settings: dict[str, str]) -> ServiceProcess:
        service = ServiceProcess(module, settings, self.folder / f"{name}.log")
        self.services[name] = service
        self._cleanup.callback(service.kill)
        return service

    def _link(self, network: Network, source: str, to: str, target: str) -> Link:
        link = network.link(f"{source} to {to}", target)
        self.links[link.name] = link
        return link

    def _store_settings(self, network: Network, name: str) -> dict[str, str]:
        link = self._link(network, name, STORE, f"127.0.0.1:{self.minio.port}")
        return {
            "EVERSTEP_STORE_URL": f"s3+http://{link.address}/{BUCKET}",
            "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
            "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
        }
