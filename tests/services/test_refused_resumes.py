"""A resume that could not end in the same bytes is refused, and says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.progress_pb2 import TrainingError
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

MakeTrainer = Callable[..., ServiceProcess]
Connect = Callable[[ServiceProcess], grpc.Channel]

#: A folder as the store, so that a test can damage a blob.
FOLDER_STORE = "folder-store"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / FOLDER_STORE


def finished_checkpoint(stub: TrainerServiceStub, strategy: TrainingStrategy) -> Checkpoint:
    messages = list(stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=strategy)))
    assert messages[-1].HasField("completed"), messages[-1]
    return messages[-1].completed.result.checkpoint


def refused(
    stub: TrainerServiceStub,
    strategy: TrainingStrategy,
    checkpoint: Checkpoint,
    overrides: StrategyOverrides | None = None,
) -> TrainingError:
    request = trainer_pb2.ResumeTrainingRequest(
        strategy=strategy, checkpoint=checkpoint.reference, overrides=overrides
    )
    messages = list(stub.ResumeTraining(request))
    assert messages[-1].HasField("failed"), messages[-1]
    error = messages[-1].failed.error
    assert "\n" not in error.message
    return error


def test_other_threads_strategy_data_or_length_are_refused(
    make_trainer: MakeTrainer, connect: Connect, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    rows = [f"{n % 7},{n % 5},{n % 3}" for n in range(120)]
    table = tmp_path / "data" / "table.csv"
    table.write_text("\n".join(["a,b,label", *rows]))
    strategy = digits(
        epochs=1,
        data={"source": "table.csv", "target": "label"},
        model={"factory": "mlp", "args": {}},
    )
    store = {"EVERSTEP_STORE_URL": f"file://{folder}"}
    stub = TrainerServiceStub(connect(make_trainer(**store).start()))
    checkpoint = finished_checkpoint(stub, strategy)

    other = digits(
        epochs=1,
        data={"source": "table.csv", "target": "label"},
        model={"factory": "mlp", "args": {}},
        seed=12,
    )
    assert refused(stub, other, checkpoint).reason == "ENVIRONMENT_MISMATCH"

    longer = refused(stub, strategy, checkpoint, StrategyOverrides(epochs=3))
    assert longer.reason == "INVALID_REQUEST"
    assert "CosineAnnealingLR" in longer.message
    assert "fork it: a strategy with 3 epochs" in longer.message

    table.write_text("\n".join(["a,b,label", *rows[:-1], "9,9,1"]))
    changed = refused(stub, strategy, checkpoint)
    assert changed.reason == "ENVIRONMENT_MISMATCH"
    assert "table.csv" in changed.message
    table.write_text("\n".join(["a,b,label", *rows]))

    two_threads = make_trainer("trainer-2", EVERSTEP_THREADS="2", **store).start()
    threads = refused(TrainerServiceStub(connect(two_threads)), strategy, checkpoint)
    assert threads.reason == "ENVIRONMENT_MISMATCH"
    assert "threads: 1 -> 2" in threads.message


def test_a_device_that_is_not_there_is_refused(make_trainer: MakeTrainer, connect: Connect) -> None:
    stub = TrainerServiceStub(connect(make_trainer(EVERSTEP_DEVICE="cuda:99").start()))
    messages = list(stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=digits())))
    error = messages[-1].failed.error
    assert error.reason == "ENVIRONMENT_MISMATCH"
    assert "set EVERSTEP_DEVICE" in error.message
    assert not error.restartable


def test_a_damaged_checkpoint_is_refused_and_named(
    make_trainer: MakeTrainer, connect: Connect, folder: Path
) -> None:
    strategy = digits(epochs=1)
    stub = TrainerServiceStub(connect(make_trainer(EVERSTEP_STORE_URL=f"file://{folder}").start()))
    checkpoint = finished_checkpoint(stub, strategy)
    manifest = folder / checkpoint.reference.manifest_key
    digest = json.loads(manifest.read_bytes())["blobs"][0]["digest"]
    blob = folder / "blobs" / digest[:2] / digest
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    error = refused(stub, strategy, checkpoint)
    assert error.reason == "CHECKPOINT_CORRUPT"
    assert blob.name in error.message

    blob.unlink()
    assert refused(stub, strategy, checkpoint).reason == "CHECKPOINT_CORRUPT"
    manifest.write_bytes(manifest.read_bytes()[:-100])
    assert refused(stub, strategy, checkpoint).reason == "CHECKPOINT_CORRUPT"
    manifest.unlink()
    assert refused(stub, strategy, checkpoint).reason == "CHECKPOINT_NOT_FOUND"


def test_a_loss_that_is_not_finite_fails_and_leaves_good_checkpoints(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    strategy = digits(
        epochs=3,
        model={"factory": "mlp", "args": {}},
        optimizer={"name": "SGD", "args": {"lr": 1e30}},
        scheduler={"name": "ConstantLR", "args": {"factor": 1.0}},
        training={"gradient_clip": 0},
    )
    messages = list(stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=strategy)))
    error = messages[-1].failed.error
    assert error.reason == "NON_FINITE_LOSS"
    assert "epoch 0" in error.message
    assert not error.restartable
