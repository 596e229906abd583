"""TrainerService called with the generated stubs alone: no control plane anywhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from everstep.object_store_process import MinioProcess
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import Phase, TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

Connect = Callable[[ServiceProcess], grpc.Channel]
MakeTrainer = Callable[..., ServiceProcess]


def take_until(
    stream: Iterator[TrainingProgress], wanted: Callable[[TrainingProgress], bool]
) -> list[TrainingProgress]:
    """Messages up to the first that is wanted; the stream is then dropped."""
    taken = []
    try:
        for message in stream:
            taken.append(message)
            if wanted(message):
                return taken
    finally:
        stream.cancel()  # type: ignore[attr-defined]
    raise AssertionError(f"the stream ended without it; last: {taken[-1:]}")


def durable(messages: list[TrainingProgress]) -> list[TrainingProgress]:
    return [message for message in messages if message.index]


def kind(message: TrainingProgress) -> str:
    return message.WhichOneof("event") or ""


def train_uninterrupted(stub: TrainerServiceStub, strategy: TrainingStrategy) -> TrainingProgress:
    request = trainer_pb2.StartTrainingRequest(strategy=strategy)
    last = list(stub.StartTraining(request))[-1]
    assert kind(last) == "completed", last
    return last


def test_a_dropped_stream_is_taken_up_again_and_misses_no_durable_event(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    first = take_until(
        stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=digits(epochs=3))),
        lambda message: kind(message) == "epoch_completed",
    )
    operation_id, cursor = first[-1].operation_id, first[-1].index
    assert operation_id

    rest = list(
        stub.WatchTraining(
            trainer_pb2.WatchTrainingRequest(
                operation_id=operation_id, attempt=1, after_index=cursor
            )
        )
    )
    everything = list(
        stub.WatchTraining(trainer_pb2.WatchTrainingRequest(operation_id=operation_id, attempt=1))
    )
    assert durable(first) + durable(rest) == durable(everything)
    assert [m.index for m in everything] == list(range(1, len(everything) + 1))
    assert [m.epoch_completed.epoch for m in everything if kind(m) == "epoch_completed"] == [
        0,
        1,
        2,
    ]
    assert kind(everything[-1]) == "completed"


def test_the_same_attempt_again_joins_the_running_one(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    request = trainer_pb2.StartTrainingRequest(
        operation_id="op-joined", attempt=1, strategy=digits(epochs=2)
    )
    take_until(stub.StartTraining(request), lambda message: kind(message) == "epoch_completed")
    joined = list(stub.StartTraining(request))
    assert sum(kind(message) == "completed" for message in joined) == 1
    listed = stub.ListTrainings(trainer_pb2.ListTrainingsRequest())
    assert [(t.operation_id, t.attempt, t.finished) for t in listed.trainings] == [
        ("op-joined", 1, True)
    ]


def test_a_killed_training_process_is_replaced_and_ends_in_the_same_bytes(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    strategy = digits(epochs=4)
    reference = train_uninterrupted(stub, strategy)

    request = trainer_pb2.StartTrainingRequest(operation_id="op-killed", strategy=strategy)
    before = take_until(
        stub.StartTraining(request),
        lambda m: (
            kind(m) == "step_metrics"
            and m.position.epoch >= 1
            and 0 < m.position.batch < m.position.batches_per_epoch
        ),
    )
    running = next(
        training
        for training in stub.ListTrainings(trainer_pb2.ListTrainingsRequest()).trainings
        if not training.finished
    )
    os.kill(running.process_id, signal.SIGKILL)
    after = list(
        stub.WatchTraining(
            trainer_pb2.WatchTrainingRequest(
                operation_id="op-killed", attempt=1, after_index=before[-1].index
            )
        )
    )
    restarted = next(m.training_restarted for m in after if kind(m) == "training_restarted")
    assert restarted.cause == "signal SIGKILL"
    assert restarted.source == "memory"
    assert restarted.from_step > 0
    assert kind(after[-1]) == "completed"
    assert after[-1].completed.result.digests == reference.completed.result.digests


def test_after_the_trainer_is_killed_another_attempt_goes_on_from_the_checkpoint(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    trainer = make_trainer().start()
    stub = TrainerServiceStub(connect(trainer))
    strategy = digits(epochs=4)
    reference = train_uninterrupted(stub, strategy)

    request = trainer_pb2.StartTrainingRequest(operation_id="op-lost", strategy=strategy)
    before = take_until(
        stub.StartTraining(request),
        lambda message: kind(message) == "checkpoint_committed" and message.position.epoch >= 1,
    )
    trainer.kill()
    trainer.start()

    stub = TrainerServiceStub(connect(trainer))
    replay = list(
        stub.WatchTraining(trainer_pb2.WatchTrainingRequest(operation_id="op-lost", attempt=1))
    )
    assert durable(before) == durable(replay)[: len(durable(before))]
    assert replay[-1].failed.error.reason == "TRAINER_RESTARTED"
    assert replay[-1].failed.error.restartable

    checkpoint = next(
        m.checkpoint_committed.checkpoint
        for m in reversed(replay)
        if kind(m) == "checkpoint_committed"
    )
    resumed = list(
        stub.ResumeTraining(
            trainer_pb2.ResumeTrainingRequest(
                operation_id="op-lost",
                attempt=2,
                strategy=strategy,
                checkpoint=checkpoint.reference,
            )
        )
    )
    restoring = next(m.phase_progress for m in resumed if kind(m) == "phase_progress")
    assert restoring.phase == Phase.PHASE_RESTORING
    assert 0 < restoring.done_bytes <= restoring.total_bytes <= checkpoint.logical_bytes
    first_step = next(m.position.step for m in resumed if kind(m) == "step_metrics")
    assert first_step == checkpoint.step + 1
    assert kind(resumed[-1]) == "completed"
    assert resumed[-1].completed.result.digests == reference.completed.result.digests
    epochs = [m.epoch_completed.epoch for m in resumed if kind(m) == "epoch_completed"]
    assert epochs == list(range(checkpoint.epoch, 4))


def test_a_higher_attempt_replaces_a_lower_one(make_trainer: MakeTrainer, connect: Connect) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    strategy = digits(epochs=200)
    first = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(operation_id="op-fenced", attempt=1, strategy=strategy)
    )
    take_until(first, lambda message: kind(message) == "step_metrics")
    second = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(operation_id="op-fenced", attempt=2, strategy=strategy)
    )
    take_until(second, lambda message: kind(message) == "step_metrics")
    old = list(
        stub.WatchTraining(trainer_pb2.WatchTrainingRequest(operation_id="op-fenced", attempt=1))
    )
    assert old[-1].failed.error.reason == "ATTEMPT_REPLACED"
    with pytest.raises(grpc.RpcError) as stale:
        list(
            stub.StartTraining(
                trainer_pb2.StartTrainingRequest(
                    operation_id="op-third", attempt=1, strategy=strategy
                )
            )
        )
    assert stale.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    stub.CancelTraining(
        trainer_pb2.CancelTrainingRequest(operation_id="op-fenced", attempt=2, discard=True)
    )
    ended = list(
        stub.WatchTraining(trainer_pb2.WatchTrainingRequest(operation_id="op-fenced", attempt=2))
    )
    assert kind(ended[-1]) == "cancelled"


def test_a_cancelled_training_leaves_a_checkpoint_of_its_last_step(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    strategy = digits(epochs=5)
    reference = train_uninterrupted(stub, strategy)
    seen = take_until(
        stub.StartTraining(
            trainer_pb2.StartTrainingRequest(operation_id="op-cancelled", strategy=strategy)
        ),
        lambda m: kind(m) == "step_metrics" and m.position.step > 30,
    )
    stub.CancelTraining(trainer_pb2.CancelTrainingRequest(operation_id="op-cancelled", attempt=1))
    rest = list(
        stub.WatchTraining(
            trainer_pb2.WatchTrainingRequest(operation_id="op-cancelled", attempt=1, after_index=0)
        )
    )
    assert kind(rest[-1]) == "cancelled"
    checkpoint = rest[-1].cancelled.checkpoint
    assert checkpoint.step >= seen[-1].position.step
    resumed = list(
        stub.ResumeTraining(
            trainer_pb2.ResumeTrainingRequest(
                operation_id="op-cancelled",
                attempt=2,
                strategy=strategy,
                checkpoint=checkpoint.reference,
            )
        )
    )
    assert resumed[-1].completed.result.digests == reference.completed.result.digests


def test_a_stopped_trainer_hands_its_training_over(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    trainer = make_trainer().start()
    stub = TrainerServiceStub(connect(trainer))
    stream = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(operation_id="op-moved", strategy=digits(epochs=200))
    )
    for message in stream:
        if kind(message) == "step_metrics" and message.position.step > 3:
            break
    os.kill(trainer.process_id, signal.SIGTERM)
    last = list(stream)[-1]
    assert last.failed.error.reason == "DRAINING"
    assert last.failed.error.restartable
    assert last.failed.checkpoint.step > 3
    assert trainer.stop() == 0


def test_more_epochs_end_as_if_they_had_been_asked_for_at_first(
    make_trainer: MakeTrainer, connect: Connect
) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    schedule = {"scheduler": {"name": "StepLR", "args": {"step_size": 1, "gamma": 0.7}}}
    shorter, longer = digits(epochs=1, **schedule), digits(epochs=3, **schedule)
    reference = train_uninterrupted(stub, longer)
    first = train_uninterrupted(stub, shorter)
    resumed = list(
        stub.ResumeTraining(
            trainer_pb2.ResumeTrainingRequest(
                strategy=shorter,
                checkpoint=first.completed.result.checkpoint.reference,
                overrides=StrategyOverrides(epochs=3),
            )
        )
    )
    assert resumed[-1].completed.result.epochs == 3
    assert resumed[-1].completed.result.digests == reference.completed.result.digests


def test_a_discard_does_not_wait_for_a_store_that_is_away(
    make_trainer: MakeTrainer, connect: Connect, tmp_path: Path
) -> None:
    minio = MinioProcess(tmp_path / "own-minio", 0, "everstep", "everstep-secret")
    minio.start()
    minio.wait_ready(60)
    try:
        trainer = make_trainer(EVERSTEP_STORE_URL=minio.url("away")).start()
        stub = TrainerServiceStub(connect(trainer))
        request = trainer_pb2.StartTrainingRequest(
            operation_id="op-away", strategy=digits(epochs=100, checkpoint={"every_steps": 0})
        )
        take_until(stub.StartTraining(request), lambda m: kind(m) == "step_metrics")
    finally:
        minio.stop()
    stub.CancelTraining(trainer_pb2.CancelTrainingRequest(operation_id="op-away", attempt=1))
    stub.CancelTraining(
        trainer_pb2.CancelTrainingRequest(operation_id="op-away", attempt=1, discard=True)
    )
    watch = trainer_pb2.WatchTrainingRequest(operation_id="op-away", attempt=1)
    assert kind(list(stub.WatchTraining(watch, timeout=20))[-1]) == "cancelled"
