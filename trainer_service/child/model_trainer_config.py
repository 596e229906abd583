"""How a ModelTrainer trains, and how a training ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer_service.child.cadence import CheckpointPolicy
from trainer_service.child.evaluation import Task
from trainer_service.child.history import EpochRecord


@dataclass(frozen=True)
class ModelTrainerConfig:
    """How to train; see the contract's TrainingSettings."""

    seed: int
    epochs: int
    batch_size: int
    task: Task
    accumulate: int = 1
    #: 0: not clipped.
    gradient_clip: float = 0.0
    #: The metric that decides on the best epoch and on early stopping.
    monitor: str = "val_loss"
    #: None: no early stopping.
    patience: int | None = None
    min_delta: float = 0.0
    #: epoch or step.
    scheduler_interval: str = "epoch"
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    #: The share of the time that snapshots for memory alone may take; 0: none are taken.
    stall_budget: float = 0.0
    workers: int = 0
    #: Whether examples are drawn by their `sample_weights`.
    weighted: bool = False
    #: float32, float64, bf16-mixed or fp16-mixed.
    precision: str = "float32"
    #: Of the weights' moving average; None: no average.
    ema_decay: float | None = None
    #: What is done about a loss or gradient that is not finite: fail, skip or rollback.
    non_finite: str = "fail"
    #: First and last step, counted from 1, of a part that a rollback leaves out.
    leave_out: tuple[int, int] | None = None
    #: The strategy, as plain dicts; part of every checkpoint's context.
    request: Mapping[str, Any] = field(default_factory=dict)
    #: The strategy that a fork's checkpoint was made with, as plain dicts; None: no fork.
    forked_from: Mapping[str, Any] | None = None
    #: Overrides of a resume: learning_rate.
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training ended."""

    history: tuple[EpochRecord, ...]
    steps: int
    stopped_early: bool
    stop_reason: str
    monitor: str
    best_value: float | None
    best_epoch: int | None
