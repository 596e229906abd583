"""One trial of the promise: a training, cut off and resumed at random, against one left alone.

Everything about a trial is drawn from a random.Random, so that hypothesis can search with it and
a long run can draw from a seed.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.training.dying_process import POINTS
from tests.training.processes import TrainingProcess, digests, through_the_store
from trainer_service.child.pipe import Failed, Finished, SlotContent
from trainer_service.slots import MemorySlots

OWN = "tests.training.own_code"

_OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "SGD", "args": {"lr": 0.05, "momentum": 0.9, "nesterov": True}},
    {"name": "SGD", "args": {"lr": 0.05, "fused": True}},
    {"name": "Adam", "args": {"lr": 0.01, "amsgrad": True}},
    {"name": "Adam", "args": {"lr": 0.01, "fused": True}},
    {"name": "AdamW", "args": {"lr": 0.01, "foreach": True}},
    {"name": "RMSprop", "args": {"lr": 0.005, "momentum": 0.5, "centered": True}},
    {"name": "Adagrad", "args": {"lr": 0.05, "lr_decay": 0.01}},
]
_SCHEDULERS: list[dict[str, Any] | None] = [
    None,
    {"name": "StepLR", "args": {"step_size": 1, "gamma": 0.5}},
    {"name": "CosineAnnealingLR", "args": {"T_max": 3}},
    {"name": "CosineAnnealingWarmRestarts", "args": {"T_0": 4}, "interval": "step"},
    {"name": "OneCycleLR", "args": {"max_lr": 0.05}, "interval": "step"},
    {"name": "CyclicLR", "args": {"base_lr": 0.001, "max_lr": 0.02, "step_size_up": 3},
     "interval": "step"},
    {"name": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": 0.3}},
    {"name": "ReduceLROnPlateau", "args": {"patience": 1}, "interval": "step"},
    {"name": "LambdaLR", "args": {"lr_lambda": f"{OWN}:falling"}, "interval": "step"},
    {
        "name": "SequentialLR",
        "args": {"milestones": [5]},
        "schedulers": [
            {"name": "LinearLR", "args": {"total_iters": 5}},
            {"name": "ExponentialLR", "args": {"gamma": 0.9}},
        ],
        "interval": "step",
    },
    {
        "name": "ChainedScheduler",
        "schedulers": [
            {"name": "ConstantLR", "args": {"factor": 0.5, "total_iters": 3}},
            {"name": "PolynomialLR", "args": {"total_iters": 8}},
        ],
    },
]  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """One process, and how it is killed."""

    #: Where it kills itself, and at which time it gets there; None: from outside.
    point: str | None
    #: Of the point; or the words it has said when it is killed from outside.
    count: int
    workers: int
    cadence: dict[str, Any]
    #: Whether the next one goes on from the store, as another trainer does.
    elsewhere: bool


@dataclass(frozen=True)
class Trial:
    """A strategy, and what happens to it."""

    content: dict[str, Any]
    segments: tuple[Segment, ...]

    def strategy(self, workers: int = 0, cadence: dict[str, Any] | None = None) -> TrainingStrategy:
        checkpoint = {"every_steps": 0, "every_epochs": 0, "every_seconds": 0, **(cadence or {})}
        data = {**self.content["data"], "workers": workers}
        return parse_strategy({**self.content, "data": data, "checkpoint": checkpoint})


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    kills: int
    #: Kinds of state that are not the same.
    differences: tuple[str, ...]


def draw_trial(draw: random.Random) -> Trial:
    """A trial at random; each one can be trained to its end."""
    data, model, loss = _draw_data(draw)
    training = {
        "epochs": draw.randint(2, 3),
        "batch_size": draw.choice((8, 13)) if "builtin" not in data["source"] else 128,
        "accumulate": draw.choice((1, 1, 2, 3)),
        "gradient_clip": draw.choice((0, 0.5)),
        "precision": draw.choice(("float32", "float32", "float64", "bf16-mixed")),
        "non_finite": "skip" if "poisoned" in data["source"] else "fail",
    }
    if "poisoned" in data["source"]:
        # Enough steps an epoch, so that some are finite.
        training |= {"batch_size": 8, "accumulate": 1}
    if draw.random() < 0.4:
        training["ema_decay"] = draw.choice((0.5, 0.95))
    if draw.random() < 0.6:
        training["early_stopping"] = {"monitor": "val_loss", "patience": draw.randint(1, 2)}
    content: dict[str, Any] = {
        "name": "trial",
        "seed": draw.randint(0, 10**6),
        "data": data,
        "model": model,
        "loss": loss,
        "optimizer": draw.choice(_OPTIMIZERS),
        "training": training,
    }
    if (scheduler := draw.choice(_SCHEDULERS)) is not None:
        if "max_lr" in scheduler.get("args", {}) and content["optimizer"]["name"] == "Adagrad":
            # It has no momentum that could be cycled.
            scheduler = {**scheduler, "args": {**scheduler["args"], "cycle_momentum": False}}
        content["scheduler"] = scheduler
    stream = "stream" in data["source"]
    segments = tuple(_draw_segment(draw, stream) for _ in range(draw.randint(1, 4)))
    return Trial(content, segments)


def _draw_data(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any], str]:
    own_model = {"factory": f"{OWN}:noisy"}
    plain_model = {"factory": "mlp", "args": {"hidden": [12], "dropout": 0.2}}
    model = draw.choice((own_model, plain_model))
    choices: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"source": f"{OWN}:augmented"}, model, "cross_entropy"),
        ({"source": f"{OWN}:weighted", "sampling": "weighted"}, model, "cross_entropy"),
        ({"source": f"{OWN}:poisoned", "args": {"examples": [5, 41]}}, model, "cross_entropy"),
        ({"source": f"{OWN}:stream"}, model, "cross_entropy"),
        ({"source": f"{OWN}:stream", "args": {"keeps": True}}, model, "cross_entropy"),
        (
            {"source": "builtin:digits", "sampling": "balanced"},
            {"factory": "cnn", "args": {"channels": [4, 8], "dropout": 0.2}},
            "cross_entropy",
        ),
        ({"source": "builtin:diabetes"}, plain_model, "smooth_l1"),
    ]
    return draw.choice(choices)


def _draw_segment(draw: random.Random, stream: bool) -> Segment:
    point = draw.choice((None, None, *POINTS))
    once_an_epoch = point is not None and ("evaluation" in point or "best" in point)
    return Segment(
        point=point,
        count=draw.randint(1, 2 if once_an_epoch else 6),
        workers=0 if stream else draw.choice((0, 0, 0, 1, 3)),
        cadence=draw.choice(
            ({"every_steps": 1}, {"every_steps": 3}, {"every_epochs": 1}, {"every_seconds": 0.01})
        ),
        elsewhere=draw.random() < 0.5,
    )


def run_trial(trial: Trial, folder: Path) -> Outcome:
    """Trains it twice, once left alone, and compares every byte.

    Raises:
        AssertionError: When a process fails for another reason than that it was killed.
    """
    alone = MemorySlots()
    slots = MemorySlots()
    try:
        _train_to_the_end(alone, trial.strategy(), None)
        assert alone.newest is not None
        reference = digests(folder / "alone", alone, alone.newest, trial.strategy())
        kills, resume = 0, None
        for segment in trial.segments:
            kills += _run_segment(trial, segment, slots, resume)
            resume = slots.newest
            if resume is not None and segment.elsewhere:
                before = slots
                slots, resume = through_the_store(folder / "store", before, trial.strategy())
                before.close()
        _train_to_the_end(slots, trial.strategy(), resume)
        assert slots.newest is not None
        ended = digests(folder / "killed", slots, slots.newest, trial.strategy())
    finally:
        alone.close()
        slots.close()
    kinds = sorted({*reference, *ended})
    return Outcome(kills, tuple(kind for kind in kinds if reference.get(kind) != ended.get(kind)))


def _train_to_the_end(
    slots: MemorySlots, strategy: TrainingStrategy, resume: SlotContent | None
) -> None:
    process = TrainingProcess(slots)
    process.train(strategy, resume=resume, allowed_packages=("tests",))
    last = process.run()
    assert isinstance(last, Finished), last


def _run_segment(
    trial: Trial, segment: Segment, slots: MemorySlots, resume: SlotContent | None
) -> bool:
    """Whether the process was killed; it may have ended before."""
    strategy = trial.strategy(segment.workers, segment.cadence)
    if segment.point is None:
        process = TrainingProcess(slots)
    else:
        arguments = (segment.point, str(segment.count))
        process = TrainingProcess(slots, "tests.training.dying_process", arguments)
    process.train(strategy, resume=resume, allowed_packages=("tests",))
    for heard, said in enumerate(process.listen(), 1):
        assert not isinstance(said, Failed), said
        if segment.point is None and heard == segment.count + 2:
            process.kill()
            return True
    return process.exit_code() != 0


def describe(trial: Trial) -> str:
    """What to say of one that failed, so that it can be run again."""
    return f"Trial(content={trial.content!r}, segments={trial.segments!r})"


def run_in_a_folder(trial: Trial) -> Outcome:
    """As `run_trial`, in a folder that is gone after it."""
    with tempfile.TemporaryDirectory() as folder:
        return run_trial(trial, Path(folder))
