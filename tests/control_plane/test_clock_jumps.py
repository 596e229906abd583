"""The control plane's clock jumps: leases, backoffs and ages stay what they are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_store.blobs import BlobStore
from checkpoint_store.digests import blob_key
from everstep.control.v1 import trainers_pb2, trainers_pb2_grpc
from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED
from everstep.errors import Reason
from everstep.rpc.options import open_channel
from tests.control_plane.conftest import LEASE_SECONDS, Client, StartTrainer, changes
from tests.control_plane.scripted_trainer import ScriptedTrainer, until
from tests.control_plane.stored_checkpoints import collect
from tests.services.processes import ServiceProcess

HOUR = 3600.0
JUMPING_CLOCK = Path(__file__).parents[1] / "services" / "jumping_clock"


class Clock:
    """The control plane's, ahead of ours by so many seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def settings(self) -> dict[str, str]:
        path = os.pathsep.join([str(JUMPING_CLOCK), os.environ.get("PYTHONPATH", "")])
        return {"EVERSTEP_TEST_CLOCK": str(self._file), "PYTHONPATH": path}

    def set(self, seconds_ahead: float) -> None:
        self._file.write_text(str(seconds_ahead))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def control_plane(
    tmp_path: Path, store_settings: dict[str, str], clock: Clock
) -> Iterator[ServiceProcess]:
    process = ServiceProcess(
        "control_plane",
        {
            "EVERSTEP_DATABASE_URL": f"sqlite:///{tmp_path / 'control-plane.db'}",
            **store_settings,
            **clock.settings(),
            "EVERSTEP_LEASE_SECONDS": str(LEASE_SECONDS),
        },
        tmp_path / "control-plane.log",
    ).start()
    yield process
    process.kill()


async def is_alive(control_plane: ServiceProcess, trainer_id: str) -> bool:
    async with open_channel(control_plane.address) as channel:
        listed = await trainers_pb2_grpc.TrainerRegistryServiceStub(channel).ListTrainers(
            trainers_pb2.ListTrainersRequest(), timeout=10
        )
    return next(each.alive for each in listed.trainers if each.trainer_id == trainer_id)


async def test_no_lease_ends_by_a_jump_forward(
    client: Client, trainer: ScriptedTrainer, clock: Clock
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    announced = trainer.announced
    await until(lambda: trainer.announced > announced, "a heartbeat")
    clock.set(HOUR)
    trainer.break_streams()
    await until(lambda: trainer.watch_requests, "the stream to be opened again")
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1


async def test_a_jump_back_keeps_no_dead_trainer_alive_and_no_operation_waiting(
    client: Client,
    control_plane: ServiceProcess,
    start_trainer: StartTrainer,
    clock: Clock,
) -> None:
    first = await start_trainer("trainer-1")
    operation_id = await client.create(restart_policy={"backoff_seconds": 6.0})
    training = await first.begun(operation_id)
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    await client.watch(operation_id, lambda event: event.state_changed.reason == "ATTEMPT_LOST")
    await first.stop()
    clock.set(-HOUR)
    deadline = time.monotonic() + 30
    while await is_alive(control_plane, "trainer-1"):
        assert time.monotonic() < deadline
    second = await start_trainer("trainer-2")
    again = await second.begun(operation_id, 2)
    again.complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    reasons = changes(await client.watch(operation_id))
    assert reasons == ["CREATED", "DISPATCHED", "ATTEMPT_LOST", "DISPATCHED", "COMPLETED"]


async def test_garbage_is_as_old_as_the_store_says(
    client: Client, store: BlobStore, folder: Path, clock: Clock
) -> None:
    store.put(blob_key("ab" * 32), b"put a moment ago")
    clock.set(2 * HOUR)
    assert (await collect(client)).removed_blobs == 0
    old = time.time() - 2 * HOUR
    os.utime(folder / blob_key("ab" * 32), (old, old))
    clock.set(-2 * HOUR)
    assert (await collect(client)).removed_blobs == 1
