"""The SDK against real services: watched through a restart, resumed, downloaded, refused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors
import safetensors.torch

from everstep import (
    AlreadyRunning,
    AsyncClient,
    CheckpointTrigger,
    Client,
    Completed,
    EpochCompleted,
    Event,
    Handle,
    InvalidRequest,
    InvalidStrategy,
    NoCheckpoint,
    OperationCancelled,
    OperationNotFound,
    OperationState,
    Reason,
    StateChanged,
    StepMetrics,
    Strategy,
    TrainingFailed,
)
from tests.services.processes import PATIENCE_SECONDS
from tests.services.stack import Stack
from tests.services.strategies import digits


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.control_plane.address) as connected:
        yield connected


def wait_for_epoch(handle: Handle, epoch: int) -> None:
    for event in handle.events():
        if isinstance(event, EpochCompleted) and event.epoch == epoch:
            return
    raise AssertionError(f"{handle} ended before epoch {epoch}")


async def watched_by_asyncio(address: str, operation_id: str) -> list[Event]:
    async with AsyncClient(address) as client:
        return [event async for event in client.operation(operation_id).events()]


def test_watchers_miss_nothing_while_the_control_plane_is_killed_and_restarted(
    stack: Stack, client: Client
) -> None:
    handle = client.train(digits(5), name="mine", labels={"team": "vision"})
    seen: list[Event] = []
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(asyncio.run, watched_by_asyncio(stack.control_plane.address, handle.id))
        for event in handle.events():
            seen.append(event)
            if isinstance(event, EpochCompleted) and event.epoch == 1:
                stack.control_plane.kill()
                stack.control_plane.start()
        also_seen = other.result(PATIENCE_SECONDS)
    durable = [event for event in seen if event.sequence]
    assert [event.sequence for event in durable] == list(range(1, len(durable) + 1))
    assert durable == [event for event in also_seen if event.sequence]
    assert [event.epoch for event in seen if isinstance(event, EpochCompleted)] == [*range(5)]
    assert any(isinstance(event, StepMetrics) for event in seen)
    assert isinstance(seen[-2], Completed)
    assert isinstance(seen[-1], StateChanged)
    assert seen[-1].to is OperationState.COMPLETED
    assert seen[-1].time.utcoffset() is not None

    result = handle.result()
    assert result == seen[-2].result
    assert result.epochs == 5
    operation = handle.describe()
    assert (operation.name, operation.labels) == ("mine", {"team": "vision"})
    assert operation.strategy == Strategy(digits(5))
    assert operation.strategy.content["model"]["args"]["channels"] == [24, 48]
    found = client.operations(state=["completed"], labels={"team": "vision"})
    assert [one.id for one in found] == [handle.id]
    assert list(client.operations(state=OperationState.FAILED)) == []


def test_a_training_is_cancelled_resumed_forked_and_downloaded(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = client.train(Strategy(digits(4)).changed({"scheduler": None}))
    assert "scheduler" not in handle.describe().strategy.content
    wait_for_epoch(handle, 2)
    with pytest.raises(AlreadyRunning):
        handle.resume()
    taken = handle.checkpoint()
    assert taken.trigger is CheckpointTrigger.REQUESTED
    assert handle.cancel().state is OperationState.CANCELLED
    with pytest.raises(OperationCancelled) as cancelled:
        handle.result()
    newest, *older = handle.checkpoints()
    assert cancelled.value.checkpoint_id == newest.id
    before = handle.history()
    assert [record.epoch for record in before] == [0, 1, 2]

    one_epoch = next(c for c in older if c.step == before[0].step)
    handle.resume(checkpoint=one_epoch.id, learning_rate=0.0005)
    assert handle.result().epochs == 4
    after = handle.history()
    assert [record.epoch for record in after] == [0, 1, 2, 3]
    assert [record.attempt for record in after] == [1, 2, 2, 2]
    assert after[0] == before[0]
    assert after[1].learning_rate == 0.0005

    frame = handle.history_frame()
    assert list(frame.index) == [0, 1, 2, 3]
    assert frame["val_loss"].tolist() == [record.metrics["val_loss"] for record in after]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"everstep\[pandas\]"):
        handle.history_frame()

    path = handle.download(tmp_path / "best.safetensors", "best_weights")
    weights = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["everstep.operation"] == handle.id
    with pytest.raises(InvalidRequest, match="is there already"):
        handle.download(path)
    handle.download(path, overwrite=True)
    assert weights.keys() == safetensors.torch.load_file(path).keys()

    fork = handle.fork({"training": {"epochs": 5}}, checkpoint=one_epoch.id, name="longer")
    assert fork.result().epochs == 5
    assert fork.describe().parent_id == handle.id
    assert [record.epoch for record in fork.history()] == [1, 2, 3, 4]
    handle.delete()
    with pytest.raises(OperationNotFound):
        handle.describe()
    assert not [c for c in client.checkpoints() if c.operation_id == handle.id]


def test_what_is_refused_has_a_class_of_its_own(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidStrategy) as refused:
        client.train({"name": "x", "epochs": 3})
    assert refused.value.violations[0].field == "epochs"
    with pytest.raises(InvalidStrategy, match="there is no file"):
        client.train(tmp_path / "nowhere.yaml")
    with pytest.raises(OperationNotFound):
        next(client.operation("op-nowhere").events())
    with pytest.raises(InvalidRequest, match="pending"):
        client.operations(state="sleeping")
    with pytest.raises(InvalidRequest, match="no address"):
        Client("here")

    handle = client.train(digits(1, loss="cross-entropy"))
    with pytest.raises(TrainingFailed, match="did you mean cross_entropy") as failed:
        handle.result()
    assert failed.value.reason is Reason.INVALID_STRATEGY
    assert isinstance(failed.value.__cause__, InvalidStrategy)
    assert failed.value.violations[0].field == "loss"
    with pytest.raises(NoCheckpoint):
        handle.resume()
    with pytest.raises(NoCheckpoint):
        handle.download(tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


async def test_the_same_with_asyncio(stack: Stack, tmp_path: Path) -> None:
    async with AsyncClient(stack.control_plane.address) as client:
        handle = await client.train(digits(3))
        async for event in handle.events():
            if isinstance(event, EpochCompleted):
                break
        taken = await handle.checkpoint()
        cancelled = await handle.cancel()
        assert cancelled.state is OperationState.CANCELLED
        with pytest.raises(OperationCancelled):
            await handle.result()
        await handle.resume()
        result = await handle.result()
        assert [record.epoch for record in await handle.history()] == [0, 1, 2]
        assert len(await handle.history_frame()) == 3
        path = await handle.download(tmp_path / "optimizer.safetensors", "optimizer")
        assert safetensors.torch.load_file(path)
        assert taken.id in [checkpoint.id async for checkpoint in handle.checkpoints()]

        assert result.checkpoint is not None
        assert (await client.verify(result.checkpoint.id)).blobs
        assert not [one async for one in client.verify_all(handle.id) if one.damaged]
        assert (await client.pin(taken.id)).pinned
        assert (await client.usage()).checkpoints
        assert [trainer.id for trainer in await client.trainers()] == ["trainer-1"]
        assert (await handle.set_priority(3)).priority == 3
        assert (await client.collect_garbage(dry_run=True)).dry_run
        fork = await handle.fork(checkpoint=taken.id, name="again")
        assert (await fork.result()).digests == result.digests
        assert [operation.id async for operation in client.operations()] == [fork.id, handle.id]
