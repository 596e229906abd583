"""The services as processes that can be killed, suspended, stopped and started again."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

from control_plane.server import serve as serve_control_plane
from control_plane.settings import ControlPlaneSettings
from everstep.errors import EverstepError
from tests.simulation.database import Disk
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.store import Bucket
from trainer_service.server import serve as serve_trainer
from trainer_service.settings import TrainerSettings

LEASE_SECONDS: Final = 2.0
DATABASE_URL: Final = "simulated"
CLIENT: Final = "client"
#: After which a supervisor starts a service again that has failed.
RESTART_SECONDS: Final = 0.5


class Cluster:
    """Control planes that share a database, trainers with a disk each, and one store."""

    def __init__(
        self,
        loop: SimulatedLoop,
        network: Network,
        bucket: Bucket,
        draw: random.Random,
        control_planes: int,
        trainers: int,
    ) -> None:
        self.loop, self.network, self.bucket = loop, network, bucket
        self.control_planes = [f"control-plane-{number}" for number in range(1, control_planes + 1)]
        self.trainers = [f"trainer-{number}" for number in range(1, trainers + 1)]
        self.capacities = {name: draw.randint(1, 2) for name in self.trainers}
        self.disk = Disk(DATABASE_URL, draw)
        self._folder = tempfile.TemporaryDirectory(prefix="everstep-", dir=_memory_folder())
        self._draw = draw
        self._disks = dict.fromkeys(self.trainers, 0)
        self.processes: dict[str, Process] = {}

    @property
    def services(self) -> list[str]:
        """All that can be killed."""
        return [*self.control_planes, *self.trainers]

    def start(self, name: str) -> None:
        """Starts a service, unless it runs."""
        running = self.processes.get(name)
        if running is not None and running.alive and any(running.tasks):
            return
        if name in self.trainers:
            trainer = self._trainer_settings(name)
            serve = partial(serve_trainer, trainer)
        else:
            serve = partial(serve_control_plane, self._control_plane_settings(name))
        self.processes[name] = self.loop.start(name, lambda: self._supervised(serve))

    async def _supervised(self, serve: Callable[[], Awaitable[None]]) -> None:
        """One that cannot start, for want of its database perhaps, is started again."""
        while True:
            try:
                return await serve()
            except EverstepError as error:
                self.network.note(f"a start failed: {error}")
            await asyncio.sleep(RESTART_SECONDS)

    def kill(self, name: str) -> None:
        """As SIGKILL; its connections are reset."""
        process = self.processes[name]
        if process.alive:
            self.loop.kill(process)
            self.network.died(process)

    def stop(self, name: str) -> None:
        """As SIGTERM."""
        process = self.processes[name]
        process.context.run(process.stop.set)

    def lose_disk(self, trainer: str) -> None:
        """The trainer's next start finds an empty disk."""
        self._disks[trainer] += 1

    def running(self, name: str) -> bool:
        """Whether it is there, and not suspended."""
        process = self.processes[name]
        return process.alive and not process.suspended and bool(process.tasks)

    def close(self) -> None:
        """Kills all that runs."""
        for process in self.processes.values():
            if process.alive:
                self.loop.kill(process)
        self._folder.cleanup()
        self.disk.close()

    def _control_plane_settings(self, name: str) -> ControlPlaneSettings:
        return ControlPlaneSettings(
            listen=f"{name}:7070",
            database_url=DATABASE_URL,
            instance=name,
            lease_seconds=LEASE_SECONDS,
            stop_grace_seconds=0.2,
        )

    def _trainer_settings(self, name: str) -> TrainerSettings:
        return TrainerSettings(
            listen=f"{name}:7071",
            trainer_id=name,
            capacity=self.capacities[name],
            control_plane=f"{self._draw.choice(self.control_planes)}:7070",
            state_dir=Path(self._folder.name) / f"{name}-{self._disks[name]}",
            spare_children=0,
            stop_grace_seconds=2.0,
        )


def _memory_folder() -> str | None:
    """Where files cost nothing; None: the usual folder."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None
