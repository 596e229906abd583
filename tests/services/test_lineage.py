"""Gone on from elsewhere: proven by steps run again, refused, or marked for ever after."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import (
    LINEAGE_KIND_FORKED,
    LINEAGE_KIND_INEXACT,
    LINEAGE_KIND_REPLAY_VERIFIED,
    Checkpoint,
)
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

ELSEWHERE = str(Path(__file__).parent / "other_processor")
EPOCHS = 3


@pytest.fixture
def trainer(
    make_trainer: Callable[..., ServiceProcess], connect: Callable[[ServiceProcess], grpc.Channel]
) -> Callable[..., TrainerServiceStub]:
    def start(name: str, **settings: str) -> TrainerServiceStub:
        made = make_trainer(name, EVERSTEP_ALLOWED_PACKAGES="tests", **settings)
        return TrainerServiceStub(connect(made.start()))

    return start


def strategy(every_steps: int = 20, **changes: Any) -> TrainingStrategy:
    return digits(
        epochs=EPOCHS,
        model={
            "factory": "tests.services.rounding:rounding_cnn",
            "args": {"channels": [8], "dropout": 0.2},
        },
        training={"batch_size": 32},
        checkpoint={"every_steps": every_steps, "every_epochs": 0, "every_seconds": 0},
        **changes,
    )


def cancelled_in_mid_epoch(stub: TrainerServiceStub, wanted: TrainingStrategy) -> Checkpoint:
    stream = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(operation_id="op-moving", strategy=wanted)
    )
    for message in stream:
        if message.HasField("epoch_completed"):
            stub.CancelTraining(
                trainer_pb2.CancelTrainingRequest(operation_id="op-moving", attempt=1)
            )
            break
    last = list(stream)[-1]
    assert last.HasField("cancelled"), last
    return last.cancelled.checkpoint


def resumed(
    stub: TrainerServiceStub, checkpoint: Checkpoint, wanted: TrainingStrategy, **options: Any
) -> TrainingProgress:
    request = trainer_pb2.ResumeTrainingRequest(
        operation_id="op-moving",
        attempt=options.pop("attempt", 2),
        strategy=wanted,
        checkpoint=checkpoint.reference,
        **options,
    )
    return list(stub.ResumeTraining(request))[-1]


def whole(stub: TrainerServiceStub, wanted: TrainingStrategy) -> TrainingProgress:
    return list(stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=wanted)))[-1]


def test_another_processor_that_computes_the_same_is_proven(
    trainer: Callable[..., TrainerServiceStub],
) -> None:
    first = trainer("first")
    reference = whole(first, strategy())
    checkpoint = cancelled_in_mid_epoch(first, strategy())
    assert checkpoint.lineage == "exact"
    elsewhere = trainer("elsewhere", PYTHONPATH=ELSEWHERE)
    last = resumed(elsewhere, checkpoint, strategy())
    assert last.HasField("completed"), last
    result = last.completed.result
    assert result.digests == reference.completed.result.digests
    assert result.checkpoint.lineage == "exact-replay-verified"
    (event,) = result.checkpoint.lineage_events
    assert (event.kind, event.step) == (LINEAGE_KIND_REPLAY_VERIFIED, checkpoint.step)
    assert "Another Processor 9000" in event.message


def test_another_processor_that_computes_otherwise_is_refused_or_marked(
    trainer: Callable[..., TrainerServiceStub],
) -> None:
    first = trainer("first")
    reference = whole(first, strategy())
    checkpoint = cancelled_in_mid_epoch(first, strategy())
    elsewhere = trainer("elsewhere", PYTHONPATH=ELSEWHERE, TEST_ROUNDS_OTHERWISE="1")
    refused = resumed(elsewhere, checkpoint, strategy()).failed.error
    assert refused.reason == "ENVIRONMENT_MISMATCH"
    assert "run again here" in refused.message
    assert "cpu_model" in refused.message
    assert "allow_inexact" in refused.message

    allowed = resumed(
        elsewhere,
        checkpoint,
        strategy(),
        attempt=3,
        overrides=StrategyOverrides(allow_inexact=True),
    )
    result = allowed.completed.result
    assert result.checkpoint.lineage == f"inexact from step {checkpoint.step}"
    assert result.digests["weights"] != reference.completed.result.digests["weights"]

    # For ever: a resume and a fork of it, in the same environment now, are marked too.
    again = resumed(elsewhere, result.checkpoint, strategy(), attempt=4).completed.result
    assert again.checkpoint.lineage == result.checkpoint.lineage
    longer = strategy(scheduler={"name": "ConstantLR", "args": {}})
    longer.training.epochs = EPOCHS + 1
    for origin, lineage in ((result.checkpoint, result.checkpoint.lineage), (checkpoint, "exact")):
        request = trainer_pb2.ResumeTrainingRequest(
            strategy=longer, checkpoint=origin.reference, fork=True
        )
        last = list(first.ResumeTraining(request))[-1]
        assert last.HasField("completed"), last
        forked = last.completed.result.checkpoint
        assert forked.lineage == lineage
        assert forked.lineage_events[-1].kind == LINEAGE_KIND_FORKED


def test_without_an_earlier_checkpoint_nothing_is_proven(
    trainer: Callable[..., TrainerServiceStub],
) -> None:
    seldom = strategy(every_steps=0)
    checkpoint = cancelled_in_mid_epoch(trainer("first"), seldom)
    elsewhere = trainer("elsewhere", PYTHONPATH=ELSEWHERE)
    error = resumed(elsewhere, checkpoint, seldom).failed.error
    assert error.reason == "ENVIRONMENT_MISMATCH"
    assert "no checkpoint before it" in error.message


def test_an_inexact_training_that_dies_is_marked_from_where_it_began(
    trainer: Callable[..., TrainerServiceStub],
) -> None:
    """A process that is replaced before its first checkpoint says the same as one after it."""
    checkpoint = cancelled_in_mid_epoch(trainer("first"), strategy())
    two = trainer("two", EVERSTEP_THREADS="2", EVERSTEP_RESTART_BACKOFF_SECONDS="0.01")
    request = trainer_pb2.ResumeTrainingRequest(
        operation_id="op-moving",
        attempt=2,
        strategy=strategy(),
        checkpoint=checkpoint.reference,
        overrides=StrategyOverrides(allow_inexact=True),
    )
    messages = []
    for message in two.ResumeTraining(request):
        messages.append(message)
        if message.HasField("checkpoint_committed") and not any(
            m.HasField("training_restarted") for m in messages
        ):
            for training in two.ListTrainings(trainer_pb2.ListTrainingsRequest()).trainings:
                if not training.finished and training.process_id:
                    os.kill(training.process_id, signal.SIGKILL)
    result = messages[-1].completed.result
    assert any(message.HasField("training_restarted") for message in messages)
    assert result.checkpoint.lineage == f"inexact from step {checkpoint.step}"
    assert [event.kind for event in result.checkpoint.lineage_events] == [LINEAGE_KIND_INEXACT]
