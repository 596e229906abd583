"""What is in the store is counted right, and unfinished uploads are aborted once they are old."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import pytest

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_key
from checkpoint_store.minio_blobs import MinioBlobStore
from everstep.control.v1.checkpoints_pb2 import (
    CollectGarbageResponse,
    GetStorageUsageRequest,
    GetStorageUsageResponse,
    UpdateCheckpointRequest,
    VerifyCheckpointsRequest,
)
from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED
from tests.control_plane.conftest import Client
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining
from tests.control_plane.stored_checkpoints import HOUR, collect, finished_with, store_checkpoint
from tests.store.conftest import ACCESS_KEY, SECRET_KEY, minio, seaweedfs
from tests.store.test_unfinished_uploads import leave_upload
from tests.store.uploading import LARGE_BYTES, PART_BYTES

__all__ = ["minio", "seaweedfs"]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is tested here is the same on any database."""
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


async def usage(client: Client) -> GetStorageUsageResponse:
    return await client.checkpoints.GetStorageUsage(GetStorageUsageRequest(), timeout=30)


async def test_every_kind_of_checkpoint_is_counted_as_what_it_is(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    _, made = await finished_with(client, trainer, store, [10, 20, 30])
    [weights, optimizer] = read_manifest(store, made[0].reference.manifest_key).blobs
    await client.checkpoints.UpdateCheckpoint(
        UpdateCheckpointRequest(checkpoint_id=made[0].reference.checkpoint_id, pinned=True)
    )
    direct = store_checkpoint(store, ScriptedTraining("op-direct", 1, None), 20)
    store.put(blob_key("ab" * 32), b"named by nothing")
    stored = 3 * weights.length + optimizer.length
    expected = GetStorageUsageResponse(
        checkpoints=3,
        logical_bytes=3 * (weights.length + optimizer.length),
        unregistered_checkpoints=1,
        stored_blobs=5,
        stored_bytes=stored + len(b"named by nothing"),
        # Four checkpoints share an optimizer, and two of them weights.
        saved_bytes=4 * (weights.length + optimizer.length) - stored,
        reclaimable_blobs=1,
        reclaimable_bytes=len(b"named by nothing"),
    )
    assert await usage(client) == expected

    # A blob that is missing saves nothing.
    store.delete(blob_key(weights.digest))
    async for _ in client.checkpoints.VerifyCheckpoints(VerifyCheckpointsRequest()):
        pass
    expected.damaged_checkpoints = 1
    expected.stored_blobs -= 1
    expected.stored_bytes -= weights.length
    assert await usage(client) == expected

    # What a manifest needs that cannot be read is not known.
    (folder / direct.reference.manifest_key).write_text("{}")
    found = await usage(client)
    assert (found.unreadable_manifests, found.unregistered_checkpoints) == (1, 1)
    assert (found.reclaimable_blobs, found.reclaimable_bytes) == (0, 0)


@pytest.fixture(params=["folder", "minio", "seaweedfs"])
def any_store_settings(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    if request.param == "folder":
        return {"EVERSTEP_STORE_URL": folder.as_uri()}
    server = request.getfixturevalue(request.param)
    return {
        "EVERSTEP_STORE_URL": server.url(f"test-{secrets.token_hex(6)}"),
        "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
        "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
    }


class TestUploads:
    """On each kind of store."""

    @pytest.fixture
    def store_settings(self, any_store_settings: dict[str, str]) -> dict[str, str]:
        return any_store_settings

    async def test_what_a_killed_upload_left_is_aborted(
        self, client: Client, trainer: ScriptedTrainer, store: BlobStore
    ) -> None:
        operation_id = await client.create()
        training = await trainer.begun(operation_id)
        leave_upload(store.url)
        is_bucket = isinstance(store, MinioBlobStore)
        left = PART_BYTES if is_bucket else LARGE_BYTES
        if is_bucket:
            leave_upload(store.url, "somebody/else")
        counted = await usage(client)
        assert (counted.unfinished_uploads, counted.unfinished_bytes) == (1, left)

        # While something trains it may be an upload in flight.
        for done in [await collect(client), await collect(client, grace=0)]:
            assert (done.aborted_uploads, done.aborted_bytes) == (0, 0)
        training.complete()
        await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
        assert (await collect(client)).aborted_uploads == 0
        planned = await until_old(client)
        assert (planned.aborted_uploads, planned.aborted_bytes) == (1, left)
        assert (await usage(client)).unfinished_uploads == 1
        assert await collect(client, grace=0) == planned
        assert (await usage(client)).unfinished_uploads == 0
        assert [upload.key for upload in store.unfinished_uploads()] == (
            ["somebody/else"] if is_bucket else []
        )


async def until_old(client: Client) -> CollectGarbageResponse:
    """A dry run that finds something: servers tell whole seconds."""
    for _ in range(500):
        planned = await collect(client, dry_run=True, grace=0)
        if planned.aborted_uploads:
            return planned
    raise AssertionError(planned)


async def test_old_remains_in_a_folder_go_while_something_trains_and_young_ones_stay(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, folder: Path
) -> None:
    operation_id = await client.create()
    await trainer.begun(operation_id)
    for name, seconds in (("old", 2 * HOUR), ("young", HOUR / 2)):
        path = folder / ".incoming" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - seconds,) * 2)
    assert (await collect(client)).aborted_uploads == 1
    assert [upload.upload_id for upload in store.unfinished_uploads()] == ["young"]
