"""A training that hangs is asked where it is, and goes on elsewhere; a slow one is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.hanging_model import BATCHES
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

Connect = Callable[[ServiceProcess], grpc.Channel]
MakeTrainer = Callable[..., ServiceProcess]

STRATEGY = digits(
    epochs=2,
    model={"factory": "tests.services.hanging_model:hanging_cnn", "args": {"dropout": 0.2}},
    checkpoint={"every_steps": 20},
)
#: Hangs, and what their stacks or what is said in place of them must name.
HANGS = {
    "lock": "in wait_for_a_lock_that_nobody_gives_back",
    "c": "in hold_the_interpreter_in_c",
    "stopped": "T (stopped)",
}


@pytest.fixture
def hangs(tmp_path: Path) -> Path:
    folder = tmp_path / "hangs"
    folder.mkdir()
    return folder


@pytest.fixture
def make_hanging(
    make_trainer: MakeTrainer, tmp_path: Path, hangs: Path
) -> Callable[..., ServiceProcess]:
    """Makes a trainer whose trainings hang as `hangs` says; its store is a folder."""

    def make(**settings: str) -> ServiceProcess:
        return make_trainer(
            EVERSTEP_ALLOWED_PACKAGES="tests",
            EVERSTEP_TEST_HANGS=str(hangs),
            EVERSTEP_RESTART_BACKOFF_SECONDS="0.01",
            EVERSTEP_STORE_URL=f"file://{tmp_path}/store",
            **settings,
        )

    return make


def train(
    trainer: ServiceProcess, connect: Connect, strategy: TrainingStrategy
) -> list[TrainingProgress]:
    stub = TrainerServiceStub(connect(trainer))
    stream: Iterator[TrainingProgress] = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(strategy=strategy)
    )
    return list(stream)


def to_hang(folder: Path, *hangs: str) -> None:
    for number, hang in enumerate(hangs):
        (folder / f"{number}-{hang}").touch()


def test_every_hang_in_turn_is_seen_told_and_recovered_from(
    make_hanging: MakeTrainer, connect: Connect, hangs: Path
) -> None:
    trainer = make_hanging(EVERSTEP_HUNG_SECONDS="2").start()
    whole = train(trainer, connect, STRATEGY)
    assert whole[-1].HasField("completed"), whole[-1]
    assert not any(message.HasField("training_restarted") for message in whole)

    to_hang(hangs, *HANGS)
    messages = train(trainer, connect, STRATEGY)
    assert messages[-1].HasField("completed"), messages[-1]
    assert messages[-1].completed.result.digests == whole[-1].completed.result.digests
    told = [message for message in messages if message.warning.reason == "TRAINING_HUNG"]
    restarts = [m.training_restarted for m in messages if m.HasField("training_restarted")]
    assert all(message.index for message in told)
    assert len(told) == len(restarts) == len(HANGS)
    for message, stacks, restart in zip(told, HANGS.values(), restarts, strict=True):
        assert stacks in message.warning.detail
        assert "in a step" in message.warning.message
        assert restart.cause.startswith("hung: no step for ")
        assert restart.source == "memory"
    first = told[0].warning
    assert f"after step {BATCHES - 1}," in first.message
    # The thread that trains comes first, and the one that hears the trainer is there too.
    assert HANGS["lock"] in first.detail.partition("\n\n")[0]
    assert "in _listen" in first.detail


def test_a_hang_every_time_is_given_up_with_its_stacks(
    make_hanging: MakeTrainer, connect: Connect, hangs: Path
) -> None:
    trainer = make_hanging(EVERSTEP_HUNG_SECONDS="1", EVERSTEP_MAX_LOCAL_RESTARTS="1").start()
    to_hang(hangs, "c", "lock")
    failed = train(trainer, connect, STRATEGY)[-1].failed
    assert failed.error.reason == "TRAINING_HUNG"
    assert "hung: no step for" in failed.error.message
    assert HANGS["lock"] in failed.error.detail
    assert failed.error.restartable
    assert failed.checkpoint.step > 0


def test_a_slow_training_does_not_hang(make_hanging: MakeTrainer, connect: Connect) -> None:
    """A first step, a batch on its way and a whole evaluation, each longer than the limit."""
    trainer = make_hanging(EVERSTEP_HUNG_SECONDS="1").start()
    strategy = digits(
        epochs=1,
        data={"source": "tests.services.hanging_model:slow_data"},
        model={"factory": "tests.services.hanging_model:slow_model", "args": {}},
    )
    messages = train(trainer, connect, strategy)
    assert messages[-1].HasField("completed"), messages[-1]
    assert not any(message.HasField("warning") for message in messages)
