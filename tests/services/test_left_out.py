"""Through the real services, a resume that leaves one piece of the state out does not go unseen."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import TrainingProgress, TrainingResult
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.leaving_out import PIECES
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

EPOCHS = 3


def strategy_without(piece: str) -> TrainingStrategy:
    return digits(
        epochs=EPOCHS,
        model={
            "factory": "tests.services.leaving_out:cnn_leaving_out",
            "args": {"piece": piece, "dropout": 0.2},
        },
        # The first epoch is the best: after it the learning rate does harm.
        scheduler={"name": "MultiStepLR", "args": {"milestones": [1], "gamma": 2000}},
        training={"batch_size": 16},
    )


def last_word(messages: list[TrainingProgress]) -> TrainingResult:
    assert messages[-1].HasField("completed"), messages[-1]
    return messages[-1].completed.result


def resumed_without(stub: TrainerServiceStub, piece: str) -> TrainingResult:
    """A training that is cancelled in its second epoch and resumed without a piece.

    An empty result when the resumed training fails for want of it.
    """
    strategy, name = strategy_without(piece), f"op-without-{piece.replace(' ', '-')}"
    stream = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(operation_id=name, strategy=strategy)
    )
    for message in stream:
        if message.HasField("epoch_completed"):
            stub.CancelTraining(trainer_pb2.CancelTrainingRequest(operation_id=name, attempt=1))
            break
    last = list(stream)[-1]
    assert last.HasField("cancelled"), last
    resumed = list(
        stub.ResumeTraining(
            trainer_pb2.ResumeTrainingRequest(
                operation_id=name,
                attempt=2,
                strategy=strategy,
                checkpoint=last.cancelled.checkpoint.reference,
            )
        )
    )
    return resumed[-1].completed.result


@pytest.fixture
def stub(
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
) -> TrainerServiceStub:
    trainer = make_trainer(EVERSTEP_ALLOWED_PACKAGES="tests", EVERSTEP_SPARE_CHILDREN="1")
    return TrainerServiceStub(connect(trainer.start()))


def test_every_piece_is_missed_when_it_is_left_out(stub: TrainerServiceStub) -> None:
    reference = last_word(
        list(
            stub.StartTraining(
                trainer_pb2.StartTrainingRequest(strategy=strategy_without("nothing"))
            )
        )
    )
    assert reference.best_epoch == 0
    unseen = []
    for piece in PIECES:
        resumed = resumed_without(stub, piece)
        same = (
            resumed.digests == reference.digests
            and resumed.metrics == reference.metrics
            and resumed.epochs == EPOCHS
            and resumed.best_value == reference.best_value
        )
        if same:
            unseen.append(piece)
    assert unseen == ["nothing"]
