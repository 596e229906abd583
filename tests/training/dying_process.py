"""A training process that kills itself at a named point of its n-th step.

`python -m tests.training.dying_process DESCRIPTOR POINT COUNT`: the product's own process, with
SIGKILL put before or after one of its calls.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from trainer_service.child import evaluation, model_trainer
from trainer_service.child.__main__ import main
from trainer_service.child.history import BestEpoch
from trainer_service.child.model_trainer import ModelTrainer
from trainer_service.child.optimization import Optimization
from trainer_service.child.snapshot_memory import SnapshotMemory
from trainer_service.child.snapshots import Snapshots

#: By point: the owner of a call, its name, and whether death comes after it or before.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "before the gradients": (Optimization, "accumulate", False),
    "between the gradients": (Optimization, "accumulate", True),
    "after the gradients": (Optimization, "norm", True),
    "after the optimizer's step": (Optimization, "update", True),
    "before the step is counted": (ModelTrainer, "_count_step", False),
    "after the step is counted": (ModelTrainer, "_count_step", True),
    "in the evaluation": (evaluation, "evaluation_batches", True),
    "after the evaluation": (model_trainer, "evaluate", True),
    "after the best weights": (BestEpoch, "offer", True),
    "after the schedule": (ModelTrainer, "_advance_schedule", True),
    "before the copy": (SnapshotMemory, "write", False),
    "in the copy": (torch, "_foreach_copy_", False),
    "between the copy and the flip": (SnapshotMemory, "write", True),
    "after the flip": (Snapshots, "take", True),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(call: Callable[..., Any], after: bool, count: int) -> Callable[..., Any]:
    calls = 0
    copies = call is torch._foreach_copy_

    @functools.wraps(call)
    def die_at_last(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < count:
            return call(*args, **kwargs)
        if copies:
            # Half of the tensors are new, half are what the slot held before.
            targets, sources = args
            call(targets[: len(targets) // 2], sources[: len(sources) // 2])
        if after:
            call(*args, **kwargs)
        _die()
        raise AssertionError("still alive")

    return die_at_last


if __name__ == "__main__":
    owner, name, after = POINTS[sys.argv[2]]
    setattr(owner, name, _dying(getattr(owner, name), after, int(sys.argv[3])))
    sys.exit(main(int(sys.argv[1])))
