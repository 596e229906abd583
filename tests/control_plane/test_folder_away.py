"""A store folder whose disk is away: no checkpoint is lost for it, and no other store is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_store.blobs import BlobStore
from everstep.control.v1.checkpoints_pb2 import (
    CollectGarbageRequest,
    DeleteCheckpointRequest,
    GetStorageUsageRequest,
    VerifyCheckpointRequest,
    VerifyCheckpointsRequest,
)
from everstep.errors import Reason
from tests.control_plane.conftest import Client, refused
from tests.control_plane.scripted_trainer import ScriptedTrainer
from tests.control_plane.stored_checkpoints import collect, finished_with, manifests
from tests.services.processes import ServiceProcess
from tests.store.disks import Disk


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is tested here is the same on any database."""
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


async def verify_all(client: Client) -> tuple[int, int]:
    call = client.checkpoints.VerifyCheckpoints(VerifyCheckpointsRequest(), wait_for_ready=True)
    words = [word async for word in call]
    return words[-1].done_checkpoints, words[-1].damaged_checkpoints


def test_a_control_plane_that_knows_of_nothing_sets_its_store_up(
    control_plane: ServiceProcess, folder: Path
) -> None:
    del control_plane
    assert Disk(folder).names() == [".incoming"]


async def test_nothing_is_concluded_from_an_empty_mount_point(
    client: Client,
    trainer: ScriptedTrainer,
    store: BlobStore,
    folder: Path,
    control_plane: ServiceProcess,
) -> None:
    _, [first, *kept] = await finished_with(client, trainer, store, [10, 20, 30])
    disk = Disk(folder)
    disk.take_away()
    name = kept[0].reference.checkpoint_id
    service = client.checkpoints

    async def all_end() -> None:
        for call in (
            service.CollectGarbage(CollectGarbageRequest(), wait_for_ready=True),
            service.CollectGarbage(CollectGarbageRequest(dry_run=True)),
            service.VerifyCheckpoint(VerifyCheckpointRequest(checkpoint_id=name)),
            service.GetStorageUsage(GetStorageUsageRequest()),
            verify_all(client),
        ):
            assert (await refused(call)).reason is Reason.STORE_UNAVAILABLE
        assert disk.names() == []

    await all_end()
    control_plane.kill()
    control_plane.start()
    await all_end()
    # Its rows go; what is in the store goes when the disk is back.
    deleted = DeleteCheckpointRequest(checkpoint_id=first.reference.checkpoint_id)
    await service.DeleteCheckpoint(deleted)

    disk.bring_back()
    assert await verify_all(client) == (2, 0)
    await collect(client)
    assert manifests(store) == {checkpoint.reference.manifest_key for checkpoint in kept}
    assert await verify_all(client) == (2, 0)
