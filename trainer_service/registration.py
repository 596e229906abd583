"""The trainer announces itself: registration is the heartbeat."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
import structlog

from everstep import __version__
from everstep.control.v1.trainers_pb2 import RegisterTrainerRequest, TrainerEnvironment
from everstep.control.v1.trainers_pb2_grpc import TrainerRegistryServiceStub
from everstep.rpc.options import UNARY_DEADLINE_SECONDS, open_channel
from everstep.rpc.status import error_from_call
from trainer_service.provenance import gpu_models
from trainer_service.settings import TrainerSettings
from trainer_service.trainings import Trainings

if TYPE_CHECKING:
    from everstep.control.v1.trainers_pb2_grpc import TrainerRegistryServiceAsyncStub

_log = structlog.get_logger(__name__)

#: Seconds between tries while the control plane cannot be reached.
RETRY_SECONDS = 1.0


def environment(settings: TrainerSettings) -> TrainerEnvironment:
    """What decides whether two trainers compute the same bytes, as far as it is seen from here."""
    torch_version = importlib.metadata.version("torch")
    return TrainerEnvironment(
        torch_version=torch_version,
        python_version=platform.python_version(),
        device=device(settings.device, torch_version, gpu_models()),
        cpu_model=_cpu_model(),
        threads=settings.training_threads(),
        everstep_version=__version__,
    )


def device(asked: str, torch_version: str, gpus: Sequence[str]) -> str:
    """What trainings will compute on, as in `cpu`, `cuda (NVIDIA H100 80GB HBM3)`.

    The training process decides, and refuses a checkpoint of another device; this is for whoever
    chooses a trainer.
    """
    if asked == "auto":
        asked = "cuda" if gpus and "+cpu" not in torch_version else "cpu"
    return f"cuda ({', '.join(gpus)})" if asked.startswith("cuda") and gpus else asked


class Registration:
    """Says who this trainer is, every third of the lease, for as long as it runs."""

    def __init__(self, settings: TrainerSettings, address: str, trainings: Trainings) -> None:
        self._settings = settings
        self._address = address
        self._trainings = trainings

    async def run(self) -> None:
        """Announces the trainer until cancelled; a control plane that is away is asked again."""
        reachable = True
        async with open_channel(self._settings.control_plane) as channel:
            registry = TrainerRegistryServiceStub(channel)
            while True:
                try:
                    wait = await self._announce(registry) / 3
                    if not reachable:
                        _log.info("control plane is back", address=self._settings.control_plane)
                    reachable = True
                except grpc.aio.AioRpcError as failure:
                    wait = RETRY_SECONDS
                    if reachable:
                        _log.warning(
                            "cannot register with the control plane; trying again",
                            address=self._settings.control_plane,
                            error=error_from_call(failure).message,
                        )
                    reachable = False
                await asyncio.sleep(wait)

    async def announce_draining(self) -> None:
        """Tells the control plane at once that no more work is taken; best effort."""
        async with open_channel(self._settings.control_plane) as channel:
            try:
                await self._announce(TrainerRegistryServiceStub(channel))
            except grpc.aio.AioRpcError as failure:
                _log.warning("cannot announce the stop", error=error_from_call(failure).message)

    async def _announce(self, registry: TrainerRegistryServiceAsyncStub) -> float:
        response = await registry.RegisterTrainer(
            RegisterTrainerRequest(
                trainer_id=self._settings.trainer_id,
                address=self._settings.advertise or self._address,
                capacity=self._settings.capacity,
                environment=environment(self._settings),
                draining=not await self._trainings.takes_work(),
                labels=self._settings.labels,
            ),
            timeout=UNARY_DEADLINE_SECONDS,
        )
        return response.lease_seconds


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as information:
            for line in information:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
