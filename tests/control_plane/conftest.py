"""A control plane as a process, with trainers that tests script."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from everstep.control.v1 import (
    checkpoints_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    trainers_pb2,
    trainers_pb2_grpc,
)
from everstep.control.v1.operations_pb2 import Operation, OperationEvent
from everstep.control.v1.trainers_pb2 import Trainer
from everstep.errors import EverstepError
from everstep.rpc.options import open_channel
from everstep.rpc.status import error_from_call
from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.control_plane.postgres import PostgresProcess
from tests.control_plane.scripted_trainer import PATIENCE_SECONDS, ScriptedTrainer
from tests.services.processes import ServiceProcess

#: Short, so that tests of lost trainers are.
LEASE_SECONDS = 1.5


def strategy(**changes: Any) -> TrainingStrategy:
    """A small valid strategy."""
    content: dict[str, Any] = {
        "name": "digits-mlp",
        "seed": 7,
        "data": {"source": "builtin:digits", "target": "label"},
        "model": {"factory": "mlp"},
        "loss": "cross_entropy",
        "optimizer": {"name": "AdamW", "args": {"lr": 0.001}},
        "training": {"epochs": 3, "batch_size": 32},
    }
    return parse_strategy({**content, **changes})


class Client:
    """The control plane as its callers see it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.operations = operations_pb2_grpc.OperationServiceStub(channel)
        self.checkpoints = checkpoints_pb2_grpc.CheckpointServiceStub(channel)
        self.registry = trainers_pb2_grpc.TrainerRegistryServiceStub(channel)

    async def create(self, **fields: Any) -> str:
        fields = {
            "request_id": str(uuid.uuid4()),
            "strategy": strategy(),
            "restart_policy": {"backoff_seconds": 0.0},
            **fields,
        }
        request = operations_pb2.CreateOperationRequest(**fields)
        return (await self.operations.CreateOperation(request, timeout=10)).operation_id

    async def get(self, operation_id: str) -> Operation:
        return await self.operations.GetOperation(
            operations_pb2.GetOperationRequest(operation_id=operation_id),
            timeout=PATIENCE_SECONDS,
            wait_for_ready=True,
        )

    async def reached(self) -> None:
        """Waits until the control plane answers."""
        await self.operations.ListOperations(
            operations_pb2.ListOperationsRequest(page_size=1),
            timeout=PATIENCE_SECONDS,
            wait_for_ready=True,
        )

    async def cancel(self, operation_id: str, *, discard: bool = False) -> Operation:
        return await self.operations.CancelOperation(
            operations_pb2.CancelOperationRequest(operation_id=operation_id, discard=discard),
            timeout=10,
        )

    async def resume(self, operation_id: str, **fields: Any) -> Operation:
        request = operations_pb2.ResumeOperationRequest(operation_id=operation_id, **fields)
        return await self.operations.ResumeOperation(request, timeout=10)

    async def prioritise(self, operation_id: str, priority: int) -> Operation:
        return await self.operations.UpdateOperation(
            operations_pb2.UpdateOperationRequest(operation_id=operation_id, priority=priority),
            timeout=10,
        )

    async def trainers(self) -> dict[str, Trainer]:
        listed = await self.registry.ListTrainers(trainers_pb2.ListTrainersRequest(), timeout=10)
        return {trainer.trainer_id: trainer for trainer in listed.trainers}

    async def drain(self, trainer_id: str, *, undo: bool = False) -> Trainer:
        return await self.registry.DrainTrainer(
            trainers_pb2.DrainTrainerRequest(trainer_id=trainer_id, undo=undo), timeout=10
        )

    async def watch(
        self,
        operation_id: str,
        wanted: Callable[[OperationEvent], bool] = lambda _event: False,
        after_sequence: int = 0,
    ) -> list[OperationEvent]:
        """Events up to the first that is wanted, or to the end of the operation."""
        call = self.operations.WatchOperation(
            operations_pb2.WatchOperationRequest(
                operation_id=operation_id, after_sequence=after_sequence
            ),
            timeout=PATIENCE_SECONDS,
            wait_for_ready=True,
        )
        events: list[OperationEvent] = []
        try:
            async for response in call:
                for event in response.batch.events:
                    events.append(event)
                    if wanted(event):
                        return events
        finally:
            call.cancel()
        return events

    async def until_state(self, operation_id: str, *states: int) -> Operation:
        """The operation, once it has come to one of the states since it was last looked at."""
        operation = await self.get(operation_id)
        if operation.state not in states:
            await self.watch(
                operation_id,
                lambda event: event.state_changed.to in states,
                operation.last_sequence,
            )
            operation = await self.get(operation_id)
        assert operation.state in states, operation
        return operation


async def refused(call: Awaitable[Any]) -> EverstepError:
    """The error that a call ends with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as failure:
        return error_from_call(failure)
    raise AssertionError(f"not refused: {answer}")


def assert_whole(events: list[OperationEvent]) -> None:
    """Entries of their own; sequences without a gap, indexes too within each attempt."""
    durable = [event for event in events if event.sequence]
    assert not [event for event in events if event.progress.next]
    assert [event.sequence for event in durable] == list(range(1, len(durable) + 1))
    by_attempt: dict[int, list[int]] = {}
    for event in durable:
        if event.HasField("progress"):
            by_attempt.setdefault(event.progress.attempt, []).append(event.progress.index)
    for indexes in by_attempt.values():
        assert indexes == list(range(1, len(indexes) + 1))


def changes(events: list[OperationEvent]) -> list[str]:
    """Why the state changed, each time."""
    return [event.state_changed.reason for event in events if event.HasField("state_changed")]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresProcess]:
    process = PostgresProcess()
    if not process.start():
        pytest.skip("the unprivileged user cannot reach the Postgres binaries in this folder")
    yield process
    process.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind that there is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control-plane.db'}"
    server: PostgresProcess = request.getfixturevalue("postgres")
    return server.create_database(f"test-{secrets.token_hex(6)}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store is that tests use when they do not say otherwise."""
    return tmp_path / "store"


@pytest.fixture
def store_settings(folder: Path) -> dict[str, str]:
    return {"EVERSTEP_STORE_URL": folder.as_uri()}


@pytest.fixture
def store(store_settings: dict[str, str]) -> BlobStore:
    opened = open_blob_store(
        store_settings["EVERSTEP_STORE_URL"],
        store_settings.get("EVERSTEP_STORE_ACCESS_KEY", ""),
        store_settings.get("EVERSTEP_STORE_SECRET_KEY", ""),
    )
    opened.set_up()
    opened.check()
    return opened


@pytest.fixture
def control_plane(
    tmp_path: Path, database_url: str, store_settings: dict[str, str]
) -> Iterator[ServiceProcess]:
    """A control plane over an empty database and that store, serving."""
    process = ServiceProcess(
        "control_plane",
        {
            "EVERSTEP_DATABASE_URL": database_url,
            **store_settings,
            "EVERSTEP_LEASE_SECONDS": str(LEASE_SECONDS),
        },
        tmp_path / "control-plane.log",
    ).start()
    yield process
    process.kill()


@pytest.fixture
async def client(control_plane: ServiceProcess) -> AsyncIterator[Client]:
    async with open_channel(control_plane.address) as channel:
        yield Client(channel)


StartTrainer = Callable[..., Awaitable[ScriptedTrainer]]


@pytest.fixture
async def start_trainer(control_plane: ServiceProcess) -> AsyncIterator[StartTrainer]:
    """Starts scripted trainers; all are stopped at the end."""
    started: list[ScriptedTrainer] = []

    async def start(trainer_id: str = "trainer-1", **options: Any) -> ScriptedTrainer:
        trainer = ScriptedTrainer(trainer_id, control_plane.address, **options)
        started.append(trainer)
        return await trainer.start()

    yield start
    for trainer in started:
        await trainer.close()


@pytest.fixture
async def trainer(start_trainer: StartTrainer) -> ScriptedTrainer:
    return await start_trainer()
