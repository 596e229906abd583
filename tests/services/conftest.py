"""Real services for tests from outside: MinIO's server code, a control plane, trainers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from everstep.object_store_process import MinioProcess
from everstep.rpc.options import open_sync_channel
from tests.services.processes import ServiceProcess
from tests.services.stack import Stack

ACCESS_KEY = "everstep"
SECRET_KEY = "everstep-secret"

Settings = dict[str, str]


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioProcess]:
    """MinIO's server code, on a free port."""
    process = MinioProcess(tmp_path_factory.mktemp("minio"), 0, ACCESS_KEY, SECRET_KEY)
    process.start()
    process.wait_ready(60)
    yield process
    process.stop()


@pytest.fixture
def store_settings(minio: MinioProcess) -> Settings:
    """A bucket of its own for each test."""
    return {
        "EVERSTEP_STORE_URL": minio.url(f"test-{secrets.token_hex(6)}"),
        "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
        "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
    }


StartService = Callable[..., ServiceProcess]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[StartService]:
    """Makes services; all are killed at the end."""
    made: list[ServiceProcess] = []

    def make(module: str, name: str, settings: Settings) -> ServiceProcess:
        process = ServiceProcess(module, settings, tmp_path / f"{name}.log")
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()


@pytest.fixture
def make_trainer(
    services: StartService, store_settings: Settings, tmp_path: Path
) -> Callable[..., ServiceProcess]:
    """Makes a trainer, not yet started."""

    def make(name: str = "trainer-1", **settings: str) -> ServiceProcess:
        return services(
            "trainer_service",
            name,
            {
                **store_settings,
                "EVERSTEP_TRAINER_ID": name,
                "EVERSTEP_STATE_DIR": str(tmp_path / name),
                "EVERSTEP_DATA_ROOT": str(tmp_path / "data"),
                "EVERSTEP_THREADS": "1",
                "EVERSTEP_SPARE_CHILDREN": "0",
                **settings,
            },
        )

    return make


@pytest.fixture
def make_control_plane(
    services: StartService, store_settings: Settings, tmp_path: Path
) -> Callable[..., ServiceProcess]:
    """Makes a control plane, not yet started."""

    def make(name: str = "control-plane", **settings: str) -> ServiceProcess:
        return services(
            "control_plane",
            name,
            {
                **store_settings,
                "EVERSTEP_DATABASE_URL": f"sqlite:///{tmp_path / 'control-plane.db'}",
                "EVERSTEP_LEASE_SECONDS": "6",
                **settings,
            },
        )

    return make


@pytest.fixture
def connect() -> Iterator[Callable[[ServiceProcess], grpc.Channel]]:
    """Opens channels; all are closed at the end."""
    channels: list[grpc.Channel] = []

    def open_to(service: ServiceProcess) -> grpc.Channel:
        channel = open_sync_channel(service.address)
        channels.append(channel)
        return channel

    yield open_to
    for channel in channels:
        channel.close()


@pytest.fixture
def stack(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
) -> Stack:
    control_plane = make_control_plane().start()
    trainer = make_trainer(EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    return Stack(control_plane, trainer, connect)
