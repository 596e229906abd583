"""What a trial is made of, drawn from its seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.chaos.faults import Fault, draw_fault
from tests.services.strategies import digits

#: What is trained: by name, each five to ten seconds on one thread. The checkpoints of each fall
#: due at other steps, and retention removes what is old.
STRATEGIES: Final[dict[str, TrainingStrategy]] = {
    "brief": digits(epochs=4, checkpoint={"every_steps": 30, "keep_last": 3}),
    "cnn": digits(epochs=8, checkpoint={"every_steps": 40, "keep_last": 3}),
    "accumulating": digits(
        epochs=8,
        training={"epochs": 8, "batch_size": 4, "accumulate": 3},
        checkpoint={"every_steps": 70, "every_epochs": 0, "keep_last": 2},
    ),
    "averaged": digits(
        epochs=8,
        seed=3,
        optimizer={"name": "SGD", "args": {"lr": 0.02, "momentum": 0.9}},
        checkpoint={"every_steps": 25, "keep_last": 3, "keep_best": 2},
    ),
}


@dataclass(frozen=True)
class Step:
    """A fault, and the events that are seen between the one before and it."""

    after_events: int
    fault: Fault

    def __str__(self) -> str:
        return f"after {self.after_events} events {self.fault}"


@dataclass(frozen=True)
class Plan:
    """One trial."""

    seed: int
    trainers: int
    #: Names of strategies, one for each operation.
    operations: tuple[str, ...]
    steps: tuple[Step, ...]


def link_names(trainers: list[str]) -> list[str]:
    """Of every link of a cluster."""
    names = ["client to control-plane", "control-plane to store"]
    for trainer in trainers:
        names += [
            f"{trainer} to control-plane",
            f"control-plane to {trainer}",
            f"{trainer} to store",
        ]
    return names


def draw_plan(seed: int) -> Plan:
    """The trial of a seed: always the same one."""
    draw = random.Random(seed)
    trainers = draw.randint(2, 3)
    operations = tuple(draw.choices(sorted(STRATEGIES), k=draw.randint(2, 3)))
    names = [f"trainer-{number}" for number in range(1, trainers + 1)]
    links = link_names(names)
    steps = tuple(
        Step(draw.randint(1, 12), draw_fault(draw, names, len(operations), links))
        for _ in range(draw.randint(5, 9))
    )
    return Plan(seed, trainers, operations, steps)
