"""What a schedule is made of, drawn from its seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Final

from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.simulation.faults import Fault, draw_fault

#: Seconds in which faults begin.
FAULT_SECONDS: Final = 6.0


@dataclass(frozen=True)
class Step:
    """A fault, and when it comes, in seconds from the beginning."""

    at: float
    fault: Fault


@dataclass(frozen=True)
class Training:
    """What one operation trains."""

    seed: int
    epochs: int
    every_steps: int
    keep_last: int
    #: When it is created, in seconds from the beginning.
    at: float


@dataclass(frozen=True)
class Plan:
    """One schedule."""

    seed: int
    control_planes: int
    trainers: int
    trainings: tuple[Training, ...]
    steps: tuple[Step, ...]


@cache
def strategy(seed: int, epochs: int, every_steps: int, keep_last: int) -> TrainingStrategy:
    """A strategy that the control plane takes; what is trained is the simulation's chain."""
    return parse_strategy(
        {
            "name": "chain",
            "seed": seed,
            "data": {"source": "builtin:digits", "target": "label"},
            "model": {"factory": "mlp"},
            "loss": "cross_entropy",
            "optimizer": {"name": "SGD", "args": {"lr": 0.1}},
            "training": {"epochs": epochs, "batch_size": 32},
            "checkpoint": {"every_steps": every_steps, "every_epochs": 0, "keep_last": keep_last},
        }
    )


def draw_plan(seed: int) -> Plan:
    """The schedule of a seed: always the same one."""
    draw = random.Random(seed)
    control_planes = draw.choice((1, 2))
    trainers = draw.randint(1, 3)
    trainings = tuple(
        Training(
            seed=draw.randint(1, 3),
            epochs=draw.randint(2, 3),
            every_steps=draw.choice((2, 3, 5)),
            keep_last=draw.randint(1, 3),
            at=draw.choice((0.0, draw.uniform(0, 3))),
        )
        for _ in range(draw.choice((1, 1, 2, 3)))
    )
    names = [f"control-plane-{number}" for number in range(1, control_planes + 1)]
    workers = [f"trainer-{number}" for number in range(1, trainers + 1)]
    steps = sorted(
        (
            Step(draw.uniform(0.2, FAULT_SECONDS), draw_fault(draw, names, workers, len(trainings)))
            for _ in range(draw.randint(2, 9))
        ),
        key=lambda step: step.at,
    )
    return Plan(seed, control_planes, trainers, trainings, tuple(steps))
