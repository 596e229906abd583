"""The store goes away in mid-training, and comes back: nothing waits for it, nothing is lost."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from everstep.object_store_process import MinioProcess
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import CheckpointTrigger
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.conftest import ACCESS_KEY, SECRET_KEY
from tests.services.processes import ServiceProcess, wait_for
from tests.services.strategies import digits

MakeTrainer = Callable[..., ServiceProcess]
Connect = Callable[[ServiceProcess], grpc.Channel]

STRATEGY = digits(epochs=6, checkpoint={"every_steps": 40})
OPERATION = "op-away"
#: How long training goes on without the store, by the times of its events.
OUTAGE_SECONDS = float(os.environ.get("EVERSTEP_TEST_OUTAGE_SECONDS", "2"))
#: Far less than an upload is tried for, far more than an evaluation takes.
LONGEST_PAUSE_SECONDS = 5.0


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioProcess]:
    """A store that this test may stop."""
    process = MinioProcess(tmp_path / "minio", 0, ACCESS_KEY, SECRET_KEY)
    process.start()
    process.wait_ready(60)
    yield process
    process.stop()


@pytest.fixture
def store_settings(own_minio: MinioProcess) -> dict[str, str]:
    return {
        "EVERSTEP_STORE_URL": own_minio.url("away"),
        "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
        "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
    }


def kind(message: TrainingProgress) -> str:
    return message.WhichOneof("event") or ""


def start(
    stub: TrainerServiceStub, operation_id: str, strategy: TrainingStrategy = STRATEGY
) -> Iterator[TrainingProgress]:
    request = trainer_pb2.StartTrainingRequest(operation_id=operation_id, strategy=strategy)
    stream: Iterator[TrainingProgress] = stub.StartTraining(request)
    return stream


def watch(stub: TrainerServiceStub, after: int = 0) -> Iterator[TrainingProgress]:
    stream: Iterator[TrainingProgress] = stub.WatchTraining(
        trainer_pb2.WatchTrainingRequest(operation_id=OPERATION, attempt=1, after_index=after)
    )
    return stream


def until(
    stream: Iterator[TrainingProgress], wanted: Callable[[TrainingProgress], bool]
) -> TrainingProgress:
    return next(message for message in stream if wanted(message))


def without_interruption(
    stub: TrainerServiceStub, strategy: TrainingStrategy = STRATEGY
) -> dict[str, str]:
    last = list(start(stub, "op-whole", strategy))[-1]
    assert kind(last) == "completed", last
    return dict(last.completed.result.digests)


def outlasting(stub: TrainerServiceStub, seconds: float) -> TrainingStrategy:
    """STRATEGY with as many epochs as take clearly longer than that here."""
    measured = digits(epochs=4, checkpoint={"every_steps": 40})
    epochs = [
        message.epoch_completed.seconds
        for message in start(stub, "op-measured", measured)
        if kind(message) == "epoch_completed"
    ]
    return digits(epochs=4 + math.ceil(2 * seconds / min(epochs)), checkpoint={"every_steps": 40})


def seconds(message: TrainingProgress) -> float:
    """When it was said, since the epoch."""
    return message.time.ToNanoseconds() / 1e9


def test_training_goes_on_and_the_uploads_follow(
    make_trainer: MakeTrainer, connect: Connect, own_minio: MinioProcess
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    strategy = outlasting(stub, OUTAGE_SECONDS)
    wanted = without_interruption(stub, strategy)

    stream = start(stub, OPERATION, strategy)
    until(stream, lambda m: kind(m) == "checkpoint_committed")
    own_minio.stop()
    stopped = time.time()
    steps_by_time: dict[float, int] = {stopped: 0}
    while max(steps_by_time) < stopped + OUTAGE_SECONDS:
        message = until(stream, lambda m: seconds(m) > stopped)
        if kind(message) == "warning":
            assert message.warning.reason == "CHECKPOINTS_BEHIND", message
            continue
        assert kind(message) in ("step_metrics", "epoch_completed", "checkpoint_delayed"), message
        if kind(message) == "step_metrics":
            steps_by_time[seconds(message)] = message.position.step
    # Training did not wait for anything.
    pauses = [later - earlier for earlier, later in pairwise(sorted(steps_by_time))]
    assert max(pauses) < LONGEST_PAUSE_SECONDS
    away_since, away_until = sorted(steps_by_time.values())[1], max(steps_by_time.values())
    assert away_until - away_since >= 10
    own_minio.start()
    # The one on its way follows, and then the newest that fell due meanwhile.
    until(
        stream,
        lambda m: (
            kind(m) == "checkpoint_committed"
            and m.checkpoint_committed.checkpoint.step > away_since
        ),
    )
    last = list(stream)[-1]
    assert kind(last) == "completed", last
    assert dict(last.completed.result.digests) == wanted
    everything = list(watch(stub))
    delayed = [m.checkpoint_delayed for m in everything if kind(m) == "checkpoint_delayed"]
    assert "UPLOAD_IN_FLIGHT" in {event.reason for event in delayed}
    steps = [
        m.checkpoint_committed.checkpoint.step
        for m in everything
        if kind(m) == "checkpoint_committed"
    ]
    assert steps == sorted(set(steps))
    # Each checkpoint that fell due was stored, or said to be left out.
    assert {event.step for event in delayed if event.reason == "UPLOAD_IN_FLIGHT"}.isdisjoint(steps)


def test_what_a_stop_cannot_store_is_stored_by_the_next_start(
    make_trainer: MakeTrainer, connect: Connect, own_minio: MinioProcess
) -> None:
    trainer = make_trainer(EVERSTEP_STOP_GRACE_SECONDS="1").start()
    stub = TrainerServiceStub(connect(trainer))
    wanted = without_interruption(stub)

    stream = start(stub, OPERATION)
    committed = until(stream, lambda m: kind(m) == "checkpoint_committed")
    own_minio.stop()
    away_since = committed.checkpoint_committed.checkpoint.step
    last_seen = until(
        stream, lambda m: kind(m) == "epoch_completed" and m.position.step > away_since
    )
    assert trainer.stop() == 0
    spool = Path(trainer.settings["EVERSTEP_STATE_DIR"]) / "spool"
    assert [path.name for path in spool.iterdir()] == [f"{OPERATION}.1"]

    own_minio.start()
    trainer.start()
    stub = TrainerServiceStub(connect(trainer))
    rest = list(watch(stub, after=last_seen.index))
    stored = next(m for m in rest if kind(m) == "checkpoint_committed").checkpoint_committed
    assert stored.checkpoint.step >= last_seen.position.step
    assert stored.checkpoint.trigger == CheckpointTrigger.CHECKPOINT_TRIGGER_SHUTDOWN
    assert kind(rest[-1]) == "failed"
    assert rest[-1].failed.error.restartable
    assert rest[-1].failed.checkpoint == stored.checkpoint
    # What is on disk goes only after the last word is in the journal.
    wait_for(lambda: not list(spool.iterdir()), "the spooled snapshot to be removed")

    resumed = stub.ResumeTraining(
        trainer_pb2.ResumeTrainingRequest(
            operation_id=OPERATION,
            attempt=2,
            strategy=STRATEGY,
            checkpoint=stored.checkpoint.reference,
        )
    )
    last = list(resumed)[-1]
    assert kind(last) == "completed", last
    assert dict(last.completed.result.digests) == wanted


def test_a_final_state_that_a_stop_cannot_store_still_completes(
    make_trainer: MakeTrainer, connect: Connect, own_minio: MinioProcess
) -> None:
    """All is trained; only the last checkpoint is missing when the trainer has to go."""
    trainer = make_trainer(EVERSTEP_STOP_GRACE_SECONDS="0.5").start()
    stub = TrainerServiceStub(connect(trainer))
    wanted = without_interruption(stub)
    stream = start(stub, OPERATION)
    last_seen = until(stream, lambda m: kind(m) == "epoch_completed")
    own_minio.stop()
    last_seen = until(
        stream, lambda m: kind(m) == "epoch_completed" and m.epoch_completed.epoch == 5
    )
    until(stream, lambda m: kind(m) == "phase_changed")
    trainer.stop()
    own_minio.start()
    trainer.start()
    last = list(watch(TrainerServiceStub(connect(trainer)), after=last_seen.index))[-1]
    # The process may have been stopped in its last evaluation: then a resume has nothing to train.
    assert kind(last) in ("completed", "failed"), last
    if kind(last) == "completed":
        assert dict(last.completed.result.digests) == wanted
    else:
        assert last.failed.checkpoint.step == last_seen.position.step
