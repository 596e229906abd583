"""A training process dies in every way there is: its cause is told, and nothing is read for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from everstep.object_store_process import MinioProcess
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.conftest import ACCESS_KEY, SECRET_KEY
from tests.services.dying_model import GROUP_BYTES
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits
from trainer_service.cgroups import own_cgroups

Connect = Callable[[ServiceProcess], grpc.Channel]
MakeTrainer = Callable[..., ServiceProcess]

STRATEGY = digits(
    epochs=2,
    model={"factory": "tests.services.dying_model:dying_cnn", "args": {"dropout": 0.2}},
    checkpoint={"every_steps": 20},
)
#: What a training process dies of, and what is told of it.
CAUSES = {
    "SIGKILL": "signal SIGKILL",
    "SIGSEGV": "signal SIGSEGV",
    "exit": "exit code 3",
    "allocator": "out of memory",
}


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    folder = tmp_path / "deaths"
    folder.mkdir()
    return folder


@pytest.fixture
def make_dying(
    make_trainer: MakeTrainer, tmp_path: Path, deaths: Path
) -> Callable[..., ServiceProcess]:
    """Makes a trainer whose trainings die as `deaths` says; its store is a folder."""

    def make(**settings: str) -> ServiceProcess:
        return make_trainer(
            EVERSTEP_ALLOWED_PACKAGES="tests",
            EVERSTEP_TEST_DEATHS=str(deaths),
            EVERSTEP_RESTART_BACKOFF_SECONDS="0.01",
            **{"EVERSTEP_STORE_URL": f"file://{tmp_path}/store", **settings},
        )

    return make


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioProcess]:
    process = MinioProcess(tmp_path / "minio", 0, ACCESS_KEY, SECRET_KEY)
    process.start()
    process.wait_ready(60)
    yield process
    process.stop()


def train(
    trainer: ServiceProcess, connect: Connect, strategy: TrainingStrategy
) -> Iterator[TrainingProgress]:
    stub = TrainerServiceStub(connect(trainer))
    request = trainer_pb2.StartTrainingRequest(strategy=strategy)
    stream: Iterator[TrainingProgress] = stub.StartTraining(request)
    return stream


def to_die(folder: Path, *deaths: str) -> None:
    for number, death in enumerate(deaths):
        (folder / f"{number}-{death}").touch()


def causes(messages: list[TrainingProgress]) -> list[str]:
    return [
        message.training_restarted.cause
        for message in messages
        if message.HasField("training_restarted")
    ]


def test_every_death_in_turn_while_there_is_no_store(
    make_dying: MakeTrainer, connect: Connect, own_minio: MinioProcess, deaths: Path
) -> None:
    """No byte can be read: from the first death to the last one the store is stopped."""
    trainer = make_dying(
        EVERSTEP_STORE_URL=own_minio.url("deaths"),
        EVERSTEP_MAX_LOCAL_RESTARTS=str(len(CAUSES)),
    ).start()
    whole = list(train(trainer, connect, STRATEGY))
    assert whole[-1].HasField("completed"), whole[-1]
    assert causes(whole) == []

    to_die(deaths, *CAUSES)
    os.mkfifo(deaths / "gate")
    stream = train(trainer, connect, STRATEGY)
    with (deaths / "gate").open("wb"):
        own_minio.stop()
    seen: list[TrainingProgress] = []
    for message in stream:
        seen.append(message)
        if len(causes(seen)) == len(CAUSES) and message.HasField("step_metrics"):
            break
    own_minio.start()
    rest = list(stream)
    restarts = [m.training_restarted for m in seen if m.HasField("training_restarted")]
    assert [restart.cause for restart in restarts] == list(CAUSES.values())
    assert {restart.source for restart in restarts} == {"memory"}
    steps = [restart.from_step for restart in restarts]
    assert steps == sorted(set(steps))
    assert steps[0] > 0
    assert seen[-1].position.step > steps[-1]
    assert rest[-1].HasField("completed"), rest[-1]
    assert rest[-1].completed.result.digests == whole[-1].completed.result.digests


def test_without_memory_again_and_again(
    make_dying: MakeTrainer, connect: Connect, deaths: Path
) -> None:
    trainer = make_dying(EVERSTEP_MAX_LOCAL_RESTARTS="1").start()
    to_die(deaths, "MemoryError", "allocator")
    messages = list(train(trainer, connect, STRATEGY))
    assert causes(messages) == ["out of memory"]
    error = messages[-1].failed.error
    assert error.reason == "TRAINING_PROCESS_DIED"
    assert "out of memory" in error.message
    assert "allocate memory" in error.detail
    assert error.restartable
    assert messages[-1].failed.checkpoint.step > 0


@pytest.mark.parametrize("how", ["bytes", "tensor"])
def test_what_does_not_fit_is_not_tried_again(
    how: str, make_dying: MakeTrainer, connect: Connect
) -> None:
    factory = {"factory": "tests.services.dying_model:too_large", "args": {"how": how}}
    trainer = make_dying().start()
    messages = list(train(trainer, connect, digits(model=factory)))
    assert causes(messages) == []
    error = messages[-1].failed.error
    assert error.reason == "OUT_OF_MEMORY"
    assert "no memory for the training" in error.message
    assert not error.restartable


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group with little memory, inside the one that this process is in."""
    for controller, limit in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for parent in own_cgroups(controller=controller)[:1]:
            group = parent / f"everstep-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError:
                continue
            try:
                # Missing where the group has no limit, or is an ordinary folder.
                if (group / limit).exists():
                    (group / limit).write_text(str(GROUP_BYTES))
                    yield group
                    return
            finally:
                group.rmdir()
    pytest.skip("no memory control group can be made here")


def test_the_kernel_ends_it_for_want_of_memory(
    make_dying: MakeTrainer, connect: Connect, deaths: Path, memory_group: Path
) -> None:
    trainer = make_dying().start()
    whole = list(train(trainer, connect, STRATEGY))
    (memory_group / "cgroup.procs").write_text(str(trainer.process_id))
    to_die(deaths, "kernel", "SIGKILL")
    messages = list(train(trainer, connect, STRATEGY))
    trainer.kill()
    assert causes(messages) == ["signal SIGKILL (out of memory)", "signal SIGKILL"]
    assert messages[-1].completed.result.digests == whole[-1].completed.result.digests
