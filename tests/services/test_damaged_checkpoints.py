"""The newest checkpoint is damaged: found, named, and the one before leads to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from everstep.control.v1 import checkpoints_pb2, operations_pb2
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
)
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from tests.services.processes import ServiceProcess
from tests.services.stack import Stack
from tests.services.strategies import digits

STRATEGY = digits(epochs=3, training={"batch_size": 16}, checkpoint={"every_steps": 20})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def stack(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
    folder: Path,
) -> Stack:
    """On a folder as the store, so that a test can damage what is in it."""
    url = {"EVERSTEP_STORE_URL": f"file://{folder}"}
    control_plane = make_control_plane(**url).start()
    trainer = make_trainer(EVERSTEP_CONTROL_PLANE=control_plane.address, **url).start()
    return Stack(control_plane, trainer, connect)


def flip_a_bit(folder: Path, newest: Checkpoint, older: Checkpoint) -> None:
    blob = own_blob(folder, newest, older)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)


def remove_a_blob(folder: Path, newest: Checkpoint, older: Checkpoint) -> None:
    own_blob(folder, newest, older).unlink()


def cut_the_manifest(folder: Path, newest: Checkpoint, _older: Checkpoint) -> None:
    manifest = folder / newest.reference.manifest_key
    content = manifest.read_bytes()
    manifest.chmod(0o644)
    manifest.write_bytes(content[: len(content) // 2])


def own_blob(folder: Path, newest: Checkpoint, older: Checkpoint) -> Path:
    """A file that the newest checkpoint alone needs."""
    names = [
        {blob["digest"] for blob in json.loads(path.read_bytes())["blobs"]}
        for path in (folder / checkpoint.reference.manifest_key for checkpoint in (newest, older))
    ]
    digest = min(names[0] - names[1])
    return folder / "blobs" / digest[:2] / digest


@pytest.mark.parametrize("damage", [flip_a_bit, remove_a_blob, cut_the_manifest])
def test_the_one_before_leads_to_the_same_bytes(
    damage: Callable[[Path, Checkpoint, Checkpoint], None], stack: Stack, folder: Path
) -> None:
    reference = stack.train(STRATEGY)
    for named in (True, False):
        operation_id = stack.create(STRATEGY)
        stack.watch(operation_id, lambda event: event.progress.HasField("epoch_completed"))
        stack.operations.CancelOperation(
            operations_pb2.CancelOperationRequest(operation_id=operation_id)
        )
        assert stack.finished(operation_id).state == OPERATION_STATE_CANCELLED
        newest, older = stack.checkpoints.ListCheckpoints(
            checkpoints_pb2.ListCheckpointsRequest(operation_id=operation_id)
        ).checkpoints[:2]
        # The reference's blobs are the same ones: only what is damaged is this training's alone.
        damage(folder, newest, older)
        request = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
        if named:
            request.checkpoint_id = newest.reference.checkpoint_id
            stack.operations.ResumeOperation(request)
            failed = stack.finished(operation_id)
            assert failed.state == OPERATION_STATE_FAILED
            assert failed.error.reason == "CHECKPOINT_CORRUPT"
            assert newest.reference.checkpoint_id in failed.error.message
            assert f"good checkpoint is {older.reference.checkpoint_id}" in failed.error.message
            request.checkpoint_id = older.reference.checkpoint_id
        stack.operations.ResumeOperation(request)
        completed = stack.finished(operation_id)
        assert completed.state == OPERATION_STATE_COMPLETED
        assert completed.result.digests == reference.result.digests
        notes = [e.note.reason for e in stack.watch(operation_id) if e.HasField("note")]
        assert ("CHECKPOINT_SKIPPED" in notes) == (not named)
