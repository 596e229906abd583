"""The registry of checkpoints over a real store: kept, removed, verified, and never garbage."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_key
from control_plane.checkpoint_records import minimised, superfluous
from control_plane.database.checkpoints import CheckpointRecord
from everstep.control.v1.checkpoints_pb2 import (
    CheckpointPart,
    DeleteCheckpointRequest,
    GetCheckpointRequest,
    GetDownloadUrlsRequest,
    GetStorageUsageRequest,
    ListCheckpointsRequest,
    UpdateCheckpointRequest,
    VerifyCheckpointRequest,
)
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
    DeleteOperationRequest,
)
from everstep.errors import Reason
from everstep.training.v1.strategy_pb2 import CheckpointPolicy
from tests.control_plane.conftest import Client, refused, strategy
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining
from tests.control_plane.stored_checkpoints import (
    HOUR,
    age,
    collect,
    finished_with,
    manifests,
    store_checkpoint,
)
from tests.services.processes import ServiceProcess

WEIGHTS = CheckpointPart.CHECKPOINT_PART_WEIGHTS


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is tested here is the same on any database."""
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


async def listed(client: Client, operation_id: str) -> list[int]:
    """The steps of an operation's checkpoints, newest first."""
    response = await client.checkpoints.ListCheckpoints(
        ListCheckpointsRequest(operation_id=operation_id)
    )
    return [checkpoint.step for checkpoint in response.checkpoints]


async def until_listed(client: Client, operation_id: str, steps: set[int]) -> None:
    for _ in range(1000):
        if set(await listed(client, operation_id)) == steps:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(await listed(client, operation_id))


def break_store(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")


def mend_store(folder: Path) -> None:
    folder.unlink()
    folder.with_name("away").rename(folder)


def download(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        content: bytes = response.read()
        return content


async def test_retention_keeps_the_last_the_best_and_the_pinned(
    client: Client, trainer: ScriptedTrainer, store: BlobStore
) -> None:
    operation_id = await client.create(
        strategy=strategy(checkpoint={"keep_last": 2, "keep_best": 1})
    )
    training = await trainer.begun(operation_id)
    losses = {10: 0.9, 20: 0.2, 30: 0.8, 40: 0.7, 50: float("nan"), 60: 0.6}
    made = {}
    for step, loss in losses.items():
        made[step] = store_checkpoint(store, training, step, loss)
        training.commit(made[step])
        if step == 10:
            await until_listed(client, operation_id, {10})
            pinned = await client.checkpoints.UpdateCheckpoint(
                UpdateCheckpointRequest(checkpoint_id=made[10].reference.checkpoint_id, pinned=True)
            )
            assert pinned.pinned
    await until_listed(client, operation_id, {10, 20, 50, 60})
    kept = {made[step].reference.manifest_key for step in (10, 20, 50, 60)}
    for _ in range(1000):
        if manifests(store) == kept:
            break
        await asyncio.sleep(0.01)
    assert manifests(store) == kept


def record(step: int, value: float | None, monitor: str = "val_loss") -> CheckpointRecord:
    return CheckpointRecord(
        f"ck-{step}", "op", 1, step, 0, step, 0, "", "", 0, monitor, value, False, False, b""
    )


@pytest.mark.parametrize(
    ("monitor", "best"), [("val_loss", 10), ("val_accuracy", 20), ("rmse", 10), ("val_f1", 20)]
)
def test_the_best_is_the_least_loss_or_the_most_of_anything_else(monitor: str, best: int) -> None:
    records = [record(40, 0.5, monitor), record(30, None, monitor)]
    records += [record(20, 0.9, monitor), record(10, 0.1, monitor)]
    removed = superfluous(records, CheckpointPolicy(keep_last=1, keep_best=1), frozenset())
    assert {each.step for each in removed} == {10, 20, 30} - {best}
    assert minimised(monitor) == (best == 10)


async def test_a_pinned_checkpoint_and_the_newest_of_a_running_operation_stay(
    client: Client, trainer: ScriptedTrainer, store: BlobStore
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    made = [store_checkpoint(store, training, step) for step in (10, 20)]
    for checkpoint in made:
        training.commit(checkpoint)
    await until_listed(client, operation_id, {10, 20})
    [first, second] = [checkpoint.reference.checkpoint_id for checkpoint in made]
    delete = client.checkpoints.DeleteCheckpoint
    error = await refused(delete(DeleteCheckpointRequest(checkpoint_id=second)))
    assert error.reason is Reason.CHECKPOINT_IN_USE
    await client.checkpoints.UpdateCheckpoint(
        UpdateCheckpointRequest(checkpoint_id=first, pinned=True)
    )
    error = await refused(delete(DeleteCheckpointRequest(checkpoint_id=first)))
    assert error.reason is Reason.CHECKPOINT_PINNED
    await client.checkpoints.UpdateCheckpoint(
        UpdateCheckpointRequest(checkpoint_id=first, pinned=False)
    )
    await delete(DeleteCheckpointRequest(checkpoint_id=first))
    assert manifests(store) == {made[1].reference.manifest_key}
    error = await refused(
        client.checkpoints.GetCheckpoint(GetCheckpointRequest(checkpoint_id=first))
    )
    assert error.reason is Reason.CHECKPOINT_NOT_FOUND


async def test_a_damaged_checkpoint_is_named_and_a_good_one_offered(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    operation_id, [good, bad] = await finished_with(client, trainer, store, [10, 20])

    async def newest_step() -> int:
        return (await client.get(operation_id)).latest_checkpoint.step

    verify = client.checkpoints.VerifyCheckpoint
    checked = await verify(VerifyCheckpointRequest(checkpoint_id=bad.reference.checkpoint_id))
    assert (checked.blobs, checked.bytes) == (2, bad.logical_bytes)
    manifest = read_manifest(store, bad.reference.manifest_key)
    [weights] = [blob for blob in manifest.blobs if blob.kind == "weights"]
    path = folder / blob_key(weights.digest)
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    error = await refused(
        verify(VerifyCheckpointRequest(checkpoint_id=bad.reference.checkpoint_id))
    )
    assert error.reason is Reason.CHECKPOINT_CORRUPT
    assert weights.digest[:12] in error.message
    assert good.reference.checkpoint_id in error.message
    assert error.metadata["newest_good_checkpoint_id"] == good.reference.checkpoint_id
    assert await newest_step() == 10
    path.write_bytes(intact)
    await verify(VerifyCheckpointRequest(checkpoint_id=bad.reference.checkpoint_id))
    assert await newest_step() == 20


async def test_urls_give_the_bytes_of_a_part(
    client: Client, trainer: ScriptedTrainer, store: BlobStore
) -> None:
    _, [made] = await finished_with(client, trainer, store, [10])
    answer = await client.checkpoints.GetDownloadUrls(
        GetDownloadUrlsRequest(checkpoint_id=made.reference.checkpoint_id, part=WEIGHTS)
    )
    [blob] = answer.blobs
    content = await asyncio.to_thread(download, blob.url)
    assert len(content) == blob.bytes
    assert content == save({"w": np.full((8, 8), 10, dtype=np.float32)})
    error = await refused(
        client.checkpoints.GetDownloadUrls(
            GetDownloadUrlsRequest(
                checkpoint_id=made.reference.checkpoint_id,
                part=CheckpointPart.CHECKPOINT_PART_BEST_WEIGHTS,
            )
        )
    )
    assert error.reason is Reason.PART_MISSING


async def test_garbage_is_what_no_manifest_names_and_is_old(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    first, [old] = await finished_with(client, trainer, store, [10])
    _, [live] = await finished_with(client, trainer, store, [20])
    await client.operations.DeleteOperation(DeleteOperationRequest(operation_id=first))
    assert manifests(store) == {live.reference.manifest_key}
    usage = await client.checkpoints.GetStorageUsage(GetStorageUsageRequest())
    assert (usage.checkpoints, usage.stored_blobs, usage.reclaimable_blobs) == (1, 3, 1)
    assert usage.logical_bytes == live.logical_bytes

    # Young garbage stays: an upload may rely on it.
    assert (await collect(client, dry_run=True)).removed_blobs == 0
    assert (await collect(client)).removed_blobs == 0
    age(folder, 2 * HOUR)
    planned = await collect(client, dry_run=True)
    assert (planned.removed_blobs, planned.kept_blobs) == (1, 2)
    assert len(list(store.list("blobs/"))) == 3
    done = await collect(client)
    assert done == planned
    left = {info.key for info in store.list("blobs/")}
    named = {blob_key(b.digest) for b in read_manifest(store, live.reference.manifest_key).blobs}
    assert left == named
    assert old.reference.manifest_key not in manifests(store)
    assert (await collect(client)).removed_blobs == 0


async def test_what_the_control_plane_does_not_know_yet_is_no_garbage(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    """A manifest whose event is still on its way, and that of a trainer's direct caller."""
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    on_its_way = store_checkpoint(store, training, 10)
    direct = store_checkpoint(store, ScriptedTraining("op-direct", 1, None), 20)
    age(folder, 48 * HOUR)
    assert (await collect(client)).removed_blobs == 0
    assert manifests(store) == {
        on_its_way.reference.manifest_key,
        direct.reference.manifest_key,
    }


async def test_while_something_trains_the_grace_is_an_hour_at_least(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    store.put(blob_key("ab" * 32), b"an upload in flight")
    age(folder, HOUR / 2)
    assert (await collect(client, grace=0)).removed_blobs == 0
    training.complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert (await collect(client, grace=0)).removed_blobs == 1


async def test_a_manifest_that_cannot_be_read_stops_the_collection(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    _, [made] = await finished_with(client, trainer, store, [10])
    path = folder / made.reference.manifest_key
    path.write_text(json.dumps({"format": "of the future"}))
    age(folder, 2 * HOUR)
    error = await refused(collect(client))
    assert error.reason is Reason.CHECKPOINT_CORRUPT
    assert made.reference.manifest_key in error.message
    assert len(list(store.list("blobs/"))) == 2


async def test_the_manifests_of_a_fenced_attempt_go_once_its_trainer_has_forgotten_it(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    operation_id = await client.create(restart_policy={"max_attempts": 1})
    training = await trainer.begun(operation_id)
    unsaid = store_checkpoint(store, training, 10)
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    await client.until_state(operation_id, OPERATION_STATE_FAILED)
    age(folder, 2 * HOUR)
    for _ in range(1000):
        if trainer.forgotten:
            break
        await asyncio.sleep(0.01)
    for _ in range(1000):
        if (await collect(client)).removed_blobs:
            break
        await asyncio.sleep(0.01)
    assert unsaid.reference.manifest_key not in manifests(store)
    assert not list(store.list("blobs/"))


async def test_a_removal_that_was_cut_off_is_finished(
    client: Client,
    trainer: ScriptedTrainer,
    store: BlobStore,
    folder: Path,
    control_plane: ServiceProcess,
) -> None:
    """Rows go first: with the store away nothing is listed any more, and nothing leaks."""
    _, made = await finished_with(client, trainer, store, [10, 20])
    [first, _] = [checkpoint.reference for checkpoint in made]
    break_store(folder)
    await client.checkpoints.DeleteCheckpoint(
        DeleteCheckpointRequest(checkpoint_id=first.checkpoint_id)
    )
    control_plane.kill()
    mend_store(folder)
    assert first.manifest_key in manifests(store)
    control_plane.start()
    await client.get(made[0].operation_id)
    age(folder, 2 * HOUR)
    assert (await collect(client)).removed_blobs == 1
    assert first.manifest_key not in manifests(store)


async def test_checkpoints_come_in_pages(
    client: Client, trainer: ScriptedTrainer, store: BlobStore
) -> None:
    operation_id, made = await finished_with(client, trainer, store, [10, 20, 30, 40, 50])
    seen: list[str] = []
    token = ""
    while True:
        page = await client.checkpoints.ListCheckpoints(
            ListCheckpointsRequest(operation_id=operation_id, page_size=2, page_token=token)
        )
        seen += [checkpoint.reference.checkpoint_id for checkpoint in page.checkpoints]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == sorted(checkpoint.reference.checkpoint_id for checkpoint in made)
