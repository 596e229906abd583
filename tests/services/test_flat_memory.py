"""The trainer's own memory stays the same, however many checkpoints it has made."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import psutil

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

#: Checkpoints that are counted, after those in which caches fill.
CHECKPOINTS = 200
WARM_UP = 20
#: The allocator keeps a few blobs' worth for the threads that upload, the journal's cache fills (2
#: MB), and the history grows. Less than an eightieth of its state is left behind by a checkpoint.
MOST_GROWTH_BYTES = 12 << 20
STATE_BYTES = 4 << 20

STRATEGY = digits(
    epochs=1000,
    model={"factory": "mlp", "args": {"hidden": [512, 512]}},
    training={"batch_size": 64, "early_stopping": {"monitor": "val_loss", "patience": 100000}},
    checkpoint={"every_steps": 1, "every_epochs": 0},
)


def own_bytes(process: psutil.Process) -> int:
    """Memory that is not shared: without the slots, which the training process has too."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def test_memory_is_flat_over_many_checkpoints(
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
) -> None:
    trainer = make_trainer().start()
    process = psutil.Process(trainer.process_id)
    stream = TrainerServiceStub(connect(trainer)).StartTraining(
        trainer_pb2.StartTrainingRequest(strategy=STRATEGY)
    )
    by_checkpoint: list[int] = []
    for message in stream:
        if message.HasField("checkpoint_committed"):
            by_checkpoint.append(own_bytes(process))
            if len(by_checkpoint) == WARM_UP + CHECKPOINTS:
                break
    else:
        raise AssertionError(f"only {len(by_checkpoint)} checkpoints, then {message}")
    assert message.checkpoint_committed.checkpoint.logical_bytes > STATE_BYTES
    before, after = max(by_checkpoint[:WARM_UP]), max(by_checkpoint[WARM_UP:])
    assert after - before < MOST_GROWTH_BYTES, by_checkpoint
