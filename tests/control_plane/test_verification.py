"""All checkpoints read again: what is damaged is named and marked, and memory is flat."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_digest, blob_key
from control_plane.database import checkpoints
from control_plane.database.session import Database
from control_plane.verification import Verification
from everstep.control.v1.checkpoints_pb2 import (
    VerifiedCheckpoint,
    VerifyCheckpointRequest,
    VerifyCheckpointsRequest,
    VerifyCheckpointsResponse,
)
from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED
from everstep.errors import Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from tests.control_plane.conftest import Client, refused
from tests.control_plane.scripted_trainer import ScriptedTrainer
from tests.control_plane.stored_checkpoints import finished_with, store_checkpoint
from tests.services.processes import ServiceProcess

#: Of a blob that nobody wrote: a file of holes takes no room, and seconds to read.
HUGE_BYTES = 8 * 1024**3
#: What a control plane may need more while it reads it.
MORE_BYTES = 100 * 1024**2


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is tested here is the same on any database."""
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


async def verify_all(client: Client, operation_id: str = "") -> list[VerifyCheckpointsResponse]:
    call = client.checkpoints.VerifyCheckpoints(
        VerifyCheckpointsRequest(operation_id=operation_id), timeout=60
    )
    return [word async for word in call]


def verdicts(words: list[VerifyCheckpointsResponse]) -> dict[int, VerifiedCheckpoint]:
    return {word.verified.step: word.verified for word in words if word.HasField("verified")}


def weights_key(store: BlobStore, checkpoint: Checkpoint) -> str:
    manifest = read_manifest(store, checkpoint.reference.manifest_key)
    [weights] = [blob for blob in manifest.blobs if blob.kind == "weights"]
    return blob_key(weights.digest)


async def test_each_blob_is_read_once_and_what_is_damaged_is_marked(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    first, [good, bad] = await finished_with(client, trainer, store, [10, 20])
    _, [other] = await finished_with(client, trainer, store, [30])
    words = await verify_all(client)
    assert words[0] == VerifyCheckpointsResponse(total_checkpoints=3)
    assert [(v.damaged, v.blobs, v.bytes) for v in verdicts(words).values()] == [
        (False, 2, other.logical_bytes), (False, 2, bad.logical_bytes),
        (False, 2, good.logical_bytes),
    ]  # fmt: skip
    # Three of weights, and one optimizer that never changes.
    stored = list(store.list("blobs/"))
    assert (words[-1].blobs, words[-1].bytes) == (4, sum(info.size for info in stored))
    assert (words[-1].done_checkpoints, words[-1].damaged_checkpoints) == (3, 0)

    path = folder / weights_key(store, bad)
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    manifest = folder / other.reference.manifest_key
    manifest.rename(folder / "elsewhere")
    words = await verify_all(client)
    found = verdicts(words)
    assert words[-1].damaged_checkpoints == 2
    assert {step: v.damaged_key for step, v in found.items() if v.damaged} == {
        20: weights_key(store, bad), 30: other.reference.manifest_key,
    }  # fmt: skip
    assert weights_key(store, bad) in found[20].message
    assert (await client.get(first)).latest_checkpoint.step == 10

    path.write_bytes(intact)
    assert set(verdicts(await verify_all(client, first))) == {10, 20}
    assert (await client.get(first)).latest_checkpoint.step == 20


@pytest.mark.parametrize("damage", ["missing", "short", "long"])
async def test_one_blob_that_two_checkpoints_name_damages_both(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path, damage: str
) -> None:
    _, made = await finished_with(client, trainer, store, [10, 20])
    named = [
        {blob_key(blob.digest) for blob in read_manifest(store, c.reference.manifest_key).blobs}
        for c in made
    ]
    [shared] = named[0] & named[1]
    content = (folder / shared).read_bytes()
    (folder / shared).unlink()
    if damage != "missing":
        (folder / shared).write_bytes(content[:-1] if damage == "short" else content + b"x")
    found = verdicts(await verify_all(client))
    assert [(v.damaged, v.damaged_key) for v in found.values()] == [(True, shared)] * 2


async def test_a_store_that_is_away_damages_nothing(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    operation_id, _ = await finished_with(client, trainer, store, [10, 20])
    move_away(folder)
    error = await refused(verify_all(client))
    assert error.reason is Reason.STORE_UNAVAILABLE
    assert (await client.get(operation_id)).latest_checkpoint.step == 20


async def test_what_is_deleted_while_it_is_read_is_left_out(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, database_url: str
) -> None:
    _, [old, new] = await finished_with(client, trainer, store, [10, 20])
    database = Database(database_url)
    read_into = store.read_into

    def delete_then_read(key: str, *rest: object) -> None:
        """The blob goes with its checkpoint, between the look at the manifest and at the blob."""
        if key == weights_key(store, old):
            with database._engine.begin() as connection:
                checkpoints.remove(connection, [old.reference.checkpoint_id], 0)
            store.delete(key)
        read_into(key, *rest)  # type: ignore[arg-type]

    store.read_into = delete_then_read  # type: ignore[method-assign, assignment]
    words = [
        VerifyCheckpointsResponse.FromString(word.SerializeToString())
        async for word in Verification(database, store).verify_all("")
    ]
    database.close()
    assert [v.checkpoint_id for v in verdicts(words).values()] == [new.reference.checkpoint_id]
    assert (words[-1].done_checkpoints, words[-1].damaged_checkpoints) == (2, 0)


def move_away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


async def huge_checkpoint(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> str:
    """A checkpoint whose weights are said to be HUGE_BYTES; the file has as many, of zeros."""
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    made = store_checkpoint(store, training, 10)
    manifest = read_manifest(store, made.reference.manifest_key)
    blobs = [
        dataclasses.replace(blob, length=HUGE_BYTES) if blob.kind == "weights" else blob
        for blob in manifest.blobs
    ]
    with (folder / weights_key(store, made)).open("r+b") as file:
        file.truncate(HUGE_BYTES)
    content = dataclasses.replace(manifest, blobs=tuple(blobs)).to_bytes()
    store.put(made.reference.manifest_key, content)
    made.reference.manifest_digest = blob_digest(content)
    training.commit(made)
    training.complete(made)
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    return made.reference.checkpoint_id


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize("all_of_them", [True, False])
async def test_a_caller_that_goes_away_ends_the_reading(
    client: Client,
    trainer: ScriptedTrainer,
    store: BlobStore,
    folder: Path,
    control_plane: ServiceProcess,
    all_of_them: bool,
) -> None:
    name = await huge_checkpoint(client, trainer, store, folder)
    process = psutil.Process(control_plane.process_id)
    before, memory = process.io_counters().read_chars, process.memory_info().rss

    def read() -> int:
        count: int = process.io_counters().read_chars - before
        return count

    if all_of_them:
        call = client.checkpoints.VerifyCheckpoints(VerifyCheckpointsRequest())
        heard = 0
        async for word in call:
            assert word.bytes >= heard
            heard = word.bytes
            if heard:
                break
    else:
        call = client.checkpoints.VerifyCheckpoint(VerifyCheckpointRequest(checkpoint_id=name))
        await until(lambda: read() > 100_000_000)
    call.cancel()
    assert process.memory_info().rss - memory < MORE_BYTES
    last = 0
    # The database is read all the while, a little.
    while read() - last > 1_000_000:
        last = read()
        await asyncio.sleep(0.5)
    assert 0 < last < HUGE_BYTES
