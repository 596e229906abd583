"""What a control plane does not take on, and how it says so."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import grpc
import pytest

from everstep.control.v1 import operations_pb2
from everstep.control.v1.operations_pb2 import OPERATION_STATE_PENDING, OPERATION_STATE_RUNNING
from everstep.errors import EverstepError, Reason
from everstep.rpc.status import error_from_call
from tests.control_plane.conftest import Client, StartTrainer, refused
from tests.control_plane.scripted_trainer import PATIENCE_SECONDS
from tests.control_plane.test_operations import failed_operation


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


@pytest.fixture
def store_settings(folder: Path) -> dict[str, str]:
    return {
        "EVERSTEP_STORE_URL": folder.as_uri(),
        "EVERSTEP_MAX_QUEUED": "2",
        "EVERSTEP_MAX_WATCHES": "2",
    }


async def test_a_full_queue_takes_no_more(client: Client, start_trainer: StartTrainer) -> None:
    trainer = await start_trainer(capacity=1)
    failed, _ = await failed_operation(client, trainer)
    running = await client.create()
    await client.until_state(running, OPERATION_STATE_RUNNING)
    request_id = str(uuid.uuid4())
    queued = [await client.create(request_id=request_id), await client.create()]
    for call in (client.create(), client.resume(failed)):
        error = await refused(call)
        assert error.reason == Reason.QUEUE_FULL
        assert error.status == "RESOURCE_EXHAUSTED"
        assert error.metadata["max_queued"] == "2"
    # What is queued already is answered as before, and a place that is free is taken.
    assert await client.create(request_id=request_id) == queued[0]
    assert (await refused(client.resume(running))).reason == Reason.ALREADY_RUNNING
    await client.cancel(queued[1])
    assert (await client.resume(failed)).state == OPERATION_STATE_PENDING


async def test_one_watch_too_many_is_refused(client: Client) -> None:
    operation_id = await client.create()
    request = operations_pb2.WatchOperationRequest(operation_id=operation_id)
    watches = [client.operations.WatchOperation(request) for _ in range(2)]
    for watch in watches:
        await watch.read()

    async def watched() -> EverstepError | None:
        call = client.operations.WatchOperation(request)
        try:
            await call.read()
        except grpc.aio.AioRpcError as failure:
            return error_from_call(failure)
        finally:
            call.cancel()
        return None

    error = await watched()
    assert error is not None
    assert error.reason == Reason.TOO_MANY_WATCHES
    assert error.status == "RESOURCE_EXHAUSTED"
    watches[0].cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await watched() is not None:
            continue
    watches[1].cancel()


async def test_labels_have_limits(client: Client) -> None:
    for labels in (
        {f"label-{number}": "" for number in range(65)},
        {"team": "x" * 257},
        {"x" * 64: "vision"},
    ):
        error = await refused(client.create(labels=labels))
        assert error.reason == Reason.INVALID_REQUEST
        assert error.status == "INVALID_ARGUMENT"
        assert error.violations[0].field.startswith("labels")
