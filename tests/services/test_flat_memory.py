"""The trainer keeps nothing of a checkpoint that it made, nor of a training that is over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.services.processes import ServiceProcess, wait_for
from tests.services.strategies import digits

#: Checkpoints that are counted, after those in which caches fill.
CHECKPOINTS = 200
WARM_UP = 20
#: The allocator keeps a few blobs' worth for the threads that upload, the journal's cache fills (2
#: MB), and the history grows. Less than an eightieth of its state is left behind by a checkpoint.
MOST_GROWTH_BYTES = 12 << 20
STATE_BYTES = 4 << 20
SLOTS = 2

STRATEGY = digits(
    epochs=1000,
    model={"factory": "mlp", "args": {"hidden": [512, 512]}},
    training={"batch_size": 64, "early_stopping": {"monitor": "val_loss", "patience": 100000}},
    checkpoint={"every_steps": 1, "every_epochs": 0},
)


@dataclass(frozen=True)
class Held:
    """What the trainer's process holds."""

    #: Memory that is not shared: without the slots, which the training process has too.
    own_bytes: int
    #: Without connections, of which a pool may keep a few more.
    descriptors: int
    #: Open, and mapped: a slot that is closed and still mapped keeps its memory.
    slot_files: int
    slot_mappings: int

    @classmethod
    def by(cls, process: psutil.Process) -> Held:
        memory = process.memory_info()
        connections = {connection.fd for connection in process.net_connections("inet")}
        targets = []
        for path in Path(f"/proc/{process.pid}/fd").iterdir():
            # One may be closed meanwhile.
            with suppress(FileNotFoundError):
                if int(path.name) not in connections:
                    targets.append(os.readlink(path))
        mappings = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        return cls(
            own_bytes=memory.rss - memory.shared,
            descriptors=len(targets),
            slot_files=sum("everstep-slot" in target for target in targets),
            slot_mappings=sum("everstep-slot" in line for line in mappings),
        )


def held_at_checkpoints(
    process: psutil.Process, stream: Iterator[TrainingProgress], count: int
) -> tuple[list[Held], TrainingProgress]:
    """What was held at each checkpoint of a training, and the event of the last one."""
    held: list[Held] = []
    for message in stream:
        if message.HasField("checkpoint_committed"):
            held.append(Held.by(process))
            if len(held) == count:
                return held, message
    raise AssertionError(f"only {len(held)} checkpoints, then {message}")


def held_after_all(process: psutil.Process, stream: Iterator[TrainingProgress]) -> Held:
    """What is held when a training is over and its slots are gone."""
    *_, last = stream
    assert last.HasField("cancelled"), last

    def without_slots() -> Held | None:
        held = Held.by(process)
        return None if held.slot_files or held.slot_mappings else held

    return wait_for(without_slots, "the slots' end", 20)


def test_a_checkpoint_and_a_training_leave_nothing_behind(
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
) -> None:
    trainer = make_trainer().start()
    process = psutil.Process(trainer.process_id)
    stub = TrainerServiceStub(connect(trainer))
    stream = stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=STRATEGY))
    held, event = held_at_checkpoints(process, stream, WARM_UP + CHECKPOINTS)
    checkpoint = event.checkpoint_committed.checkpoint
    assert checkpoint.logical_bytes > STATE_BYTES
    before, after = held[:WARM_UP], held[WARM_UP:]
    most = max(now.own_bytes for now in before)
    assert max(now.own_bytes for now in after) - most < MOST_GROWTH_BYTES, held
    # One more for a moment, such as a slot's that is being mapped.
    assert max(now.descriptors for now in after) <= max(now.descriptors for now in before) + 1, held
    assert max(now.slot_mappings for now in after) <= SLOTS, held
    # A mapping has its file open once more.
    assert max(now.slot_files for now in after) <= 2 * SLOTS, held

    operation_id = event.operation_id
    stub.CancelTraining(trainer_pb2.CancelTrainingRequest(operation_id=operation_id, attempt=1))
    once = held_after_all(process, stream)
    stream = stub.ResumeTraining(
        trainer_pb2.ResumeTrainingRequest(
            operation_id=operation_id,
            attempt=2,
            strategy=STRATEGY,
            checkpoint=checkpoint.reference,
        )
    )
    held_at_checkpoints(process, stream, 1)
    stub.CancelTraining(
        trainer_pb2.CancelTrainingRequest(operation_id=operation_id, attempt=2, discard=True)
    )
    twice = held_after_all(process, stream)
    assert twice.descriptors <= once.descriptors, (once, twice)
