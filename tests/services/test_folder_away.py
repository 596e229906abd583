"""A trainer whose store folder is an empty mount point makes no other store of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits
from tests.store.disks import Disk

MakeTrainer = Callable[..., ServiceProcess]
Connect = Callable[[ServiceProcess], grpc.Channel]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store_settings(folder: Path) -> dict[str, str]:
    return {"EVERSTEP_STORE_URL": folder.as_uri()}


def test_a_trainer_that_remembers_trainings_makes_no_store(
    make_trainer: MakeTrainer, connect: Connect, folder: Path
) -> None:
    trainer = make_trainer(EVERSTEP_STORE_PATIENCE_SECONDS="1").start()
    stub = TrainerServiceStub(connect(trainer))
    disk = Disk(folder)
    assert disk.names() == [".incoming"]

    def last_word() -> TrainingProgress:
        request = trainer_pb2.StartTrainingRequest(strategy=digits(epochs=1))
        return list(stub.StartTraining(request, wait_for_ready=True))[-1]

    disk.take_away()
    for _ in range(2):
        failed = last_word().failed
        assert failed.error.reason == "STORE_UNAVAILABLE"
        assert failed.error.restartable
        assert "mounted" in failed.error.message
        assert disk.names() == []
        trainer.kill()
        trainer.start()
    disk.bring_back()
    assert last_word().HasField("completed")


def test_a_trainer_with_a_control_plane_leaves_that_to_it(
    make_trainer: MakeTrainer, folder: Path
) -> None:
    trainer = make_trainer(EVERSTEP_CONTROL_PLANE="127.0.0.1:1").start()
    assert not folder.exists()
    trainer.stop()
