"""A collection that is killed at any point loses nothing that is needed, and the next ends it."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest, verify_checkpoint
from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.minio_blobs import MinioBlobStore
from control_plane.database import attempts, checkpoints
from control_plane.database.session import Database
from everstep.control.v1.checkpoints_pb2 import VerifyCheckpointsRequest
from everstep.control.v1.operations_pb2 import OPERATION_STATE_FAILED
from everstep.errors import Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from tests.control_plane.collecting import POINTS
from tests.control_plane.conftest import Client
from tests.control_plane.scripted_trainer import ScriptedTrainer
from tests.control_plane.stored_checkpoints import finished_with, manifests, store_checkpoint
from tests.services.processes import ServiceProcess
from tests.store.conftest import ACCESS_KEY, SECRET_KEY, minio

__all__ = ["minio"]

#: Blobs that nothing names, and uploads that nobody ended.
REMAINS = 2


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is tested here is the same on any database."""
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


@pytest.fixture(params=["folder", "minio"])
def store_settings(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    if request.param == "folder":
        return {"EVERSTEP_STORE_URL": folder.as_uri()}
    return {
        "EVERSTEP_STORE_URL": request.getfixturevalue("minio").url(f"test-{secrets.token_hex(6)}"),
        "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
        "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
    }


def leave_remains(store: BlobStore, folder: Path) -> None:
    for number in range(REMAINS):
        content = f"named by nothing {number}".encode()
        store.put(blob_key(blob_digest(content)), content)
        if isinstance(store, MinioBlobStore):
            client: Any = store._client
            key = blob_key(blob_digest(b"on its way"))
            headers = {"Content-Type": "application/octet-stream"}
            upload_id = client._create_multipart_upload(store._bucket, key, headers)
            client._upload_part(store._bucket, key, b"half", None, upload_id, 1)
        else:
            (folder / ".incoming" / secrets.token_hex(16)).write_bytes(b"half")


async def leave_unregistered(
    client: Client, trainer: ScriptedTrainer, store: BlobStore, database_url: str
) -> None:
    """A manifest that the trainer of a failed operation never told of."""
    operation_id = await client.create(restart_policy={"max_attempts": 1})
    training = await trainer.begun(operation_id)
    store_checkpoint(store, training, 90)
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    await client.until_state(operation_id, OPERATION_STATE_FAILED)
    # The trainer hears that it may forget the attempt before the database has it settled.
    database = Database(database_url)
    for _ in range(1000):
        if settled := await database.read(attempts.settled, operation_id, 1):
            break
        await asyncio.sleep(0.01)
    database.close()
    assert settled


@pytest.fixture
async def checkpoints_left(
    client: Client,
    trainer: ScriptedTrainer,
    store: BlobStore,
    folder: Path,
    database_url: str,
    control_plane: ServiceProcess,
) -> list[Checkpoint]:
    """Three checkpoints of an operation, and all kinds of remains; the control plane is gone."""
    _, made = await finished_with(client, trainer, store, [10, 20, 30])
    await leave_unregistered(client, trainer, store, database_url)
    leave_remains(store, folder)
    control_plane.kill()
    return made


def collect(url: str, store: BlobStore, checkpoint_id: str, point: str = "") -> dict[str, int]:
    """What a collection did, in a process of its own; with a point: it was killed there."""
    result = subprocess.run(
        [
            sys.executable, "-m", "tests.control_plane.collecting",
            url, store.url, checkpoint_id, point,
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert result.returncode == (-signal.SIGKILL if point else 0), result.stderr
    done: dict[str, int] = {} if point else json.loads(result.stdout)
    return done


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_collection_is_finished_by_the_next(
    checkpoints_left: list[Checkpoint],
    client: Client,
    store: BlobStore,
    database_url: str,
    control_plane: ServiceProcess,
    point: str,
) -> None:
    [deleted, *kept] = checkpoints_left
    database = Database(database_url)
    name = deleted.reference.checkpoint_id

    collect(database_url, store, name, point)
    listed = await database.read(checkpoints.manifest_keys)
    assert listed == {checkpoint.reference.manifest_key for checkpoint in kept}
    left = manifests(store) - listed
    planned = await database.read(checkpoints.planned_removals)
    assert deleted.reference.manifest_key in planned or deleted.reference.manifest_key not in left
    for key in listed:
        verify_checkpoint(store, read_manifest(store, key))

    collect(database_url, store, name)
    assert manifests(store) == listed
    needed = {blob_key(b.digest) for key in listed for b in read_manifest(store, key).blobs}
    assert {info.key for info in store.list("blobs/")} == needed
    assert list(store.unfinished_uploads()) == []
    assert await database.read(checkpoints.planned_removals) == []
    database.close()

    control_plane.start()
    call = client.checkpoints.VerifyCheckpoints(VerifyCheckpointsRequest(), wait_for_ready=True)
    words = [word async for word in call]
    assert (words[-1].done_checkpoints, words[-1].damaged_checkpoints) == (len(kept), 0)


async def test_a_collection_that_is_not_killed_does_all_of_it(
    checkpoints_left: list[Checkpoint], store: BlobStore, database_url: str
) -> None:
    """Beside the others: each of their points lies on the way."""
    done = collect(database_url, store, checkpoints_left[0].reference.checkpoint_id)
    assert done["removed_blobs"] == 2 + REMAINS
    assert done["aborted_uploads"] == REMAINS
    assert done["aborted_bytes"] == REMAINS * len(b"half")
