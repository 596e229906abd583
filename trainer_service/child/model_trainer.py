"""ModelTrainer: the loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from everstep.errors import EverstepError, Reason
from trainer_service.child.batches import batch_count, epoch_batches
from trainer_service.child.cadence import CheckpointCadence, CheckpointPolicy
from trainer_service.child.early_stopping import EarlyStopping
from trainer_service.child.evaluation import Task, evaluate
from trainer_service.child.events import (
    CancellationToken,
    CheckpointDelayed,
    EpochCompleted,
    PhaseChanged,
    Position,
    ProgressCallback,
    StepMetrics,
    Stop,
    TrainingStopped,
)
from trainer_service.child.history import BestEpoch, EpochRecord
from trainer_service.child.randomness import reseed
from trainer_service.child.resume_context import TrainingResumeContext

#: Seconds between two reports of step metrics.
STEP_REPORT_SECONDS: Final = 0.1

#: Takes a snapshot for a trigger (PERIODIC, REQUESTED, ...); False when no memory slot is free.
CheckpointCallback = Callable[[str, TrainingResumeContext], bool]


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
    workers: int = 0
    #: The strategy, as plain dicts; part of every checkpoint's context.
    request: Mapping[str, Any] = field(default_factory=dict)
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


class ModelTrainer:
    """Trains a model, from the beginning or from a TrainingResumeContext, to the same bytes.

    Args:
        model: In the precision it is trained in.
        loss: Called with (outputs, targets); a scalar.
        optimizer: Of the model's parameters, in their order.
        scheduler: Of the optimizer; None for a constant learning rate.
        config: How to train.
        progress_callback: Called with every event.
        cancellation_token: Looked at after every optimizer step and evaluation batch.
        checkpoint_callback: Called with the live state when a checkpoint is due.
        resume_context: What to go on from.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        config: ModelTrainerConfig,
        progress_callback: ProgressCallback | None = None,
        cancellation_token: CancellationToken | None = None,
        checkpoint_callback: CheckpointCallback | None = None,
        resume_context: TrainingResumeContext | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.resume_context = resume_context
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self.history: list[EpochRecord] = []
        self.best = BestEpoch(config.monitor)
        self.early_stopping = EarlyStopping(config.monitor, config.patience, config.min_delta)
        self._progress_callback = progress_callback or (lambda _position, _event: None)
        self._token = cancellation_token or CancellationToken()
        self._checkpoint_callback = checkpoint_callback or (lambda _trigger, _context: True)
        self._cadence = CheckpointCadence(config.checkpoint, time.monotonic())
        self._loss_sum = 0.0
        self._examples = 0
        self._applied_overrides: Mapping[str, Any] = {}
        #: Whether the live state is that of a whole optimizer step.
        self._whole = True
        self._names = _parameter_names(model, optimizer)
        self._first_step = 0
        self._began = self._epoch_began = 0.0
        self._reported = -math.inf
        self._batches = 0
        if resume_context is not None:
            self._restore(resume_context)
        self._apply_overrides()

    def train(self, examples: Any, validation: Any) -> TrainingOutcome:
        """Trains until all epochs are done or early stopping ends it.

        Args:
            examples: A data set of (input, target) pairs.
            validation: As `examples`; empty: no validation metrics.

        Raises:
            TrainingStopped: When the token asked for it; a checkpoint was taken unless discarded.
            EverstepError: NON_FINITE_LOSS.
        """
        self._batches = batch_count(len(examples), self.config.batch_size)
        self._began, self._first_step = time.monotonic(), self.step
        self.model.train()
        self._report(PhaseChanged("TRAINING"))
        try:
            while self.epoch < self.config.epochs and not self.early_stopping.stopped:
                self._train_epoch(examples)
                self._end_epoch(validation)
                self._between_steps(epochs_done=self.epoch)
        except TrainingStopped as stopped:
            if stopped.stop is not Stop.DISCARD:
                trigger = "SHUTDOWN" if stopped.stop is Stop.SHUTDOWN else "CANCELLATION"
                self._checkpoint_callback(trigger, self.capture())
            raise
        except Exception:
            if self._whole:
                self._checkpoint_callback("FAILURE", self.capture())
            raise
        self._checkpoint_callback("FINAL", self.capture())
        return TrainingOutcome(
            history=tuple(self.history),
            steps=self.step,
            stopped_early=self.early_stopping.stopped,
            stop_reason=self.early_stopping.reason,
            monitor=self.config.monitor,
            best_value=self.best.value,
            best_epoch=self.best.epoch,
        )

    def capture(self) -> TrainingResumeContext:
        """The state between two optimizer steps; its tensors are the live ones."""
        return TrainingResumeContext(
            start_epoch=self.epoch,
            start_batch=self.batch,
            step=self.step,
            epoch_loss_sum=self._loss_sum,
            epoch_examples=self._examples,
            model_weights=self.model.state_dict(),
            optimizer_state=self.optimizer.state_dict(),
            scheduler_state=None if self.scheduler is None else self.scheduler.state_dict(),
            training_history=tuple(self.history),
            best_model_weights=self.best.weights,
            best_val_loss=self.best.value,
            best_epoch=self.best.epoch,
            original_request=self.config.request,
            early_stopping_best=self.early_stopping.best_value,
            epochs_without_improvement=self.early_stopping.epochs_without_improvement,
            stopped_early=self.early_stopping.stopped,
            stop_reason=self.early_stopping.reason,
            parameter_names=self._names,
            applied_overrides=self._applied_overrides,
        )

    def _restore(self, context: TrainingResumeContext) -> None:
        """Takes a context over: everything is built by now, so its values win.

        The optimizer comes before the scheduler, which overwrites learning rates when it is built.
        """
        self.model.load_state_dict(dict(context.model_weights))
        self.optimizer.load_state_dict(copy.deepcopy(dict(context.optimizer_state)))
        if self.scheduler is not None and context.scheduler_state is not None:
            self.scheduler.load_state_dict(copy.deepcopy(dict(context.scheduler_state)))
        self.epoch, self.batch, self.step = context.start_epoch, context.start_batch, context.step
        self._loss_sum, self._examples = context.epoch_loss_sum, context.epoch_examples
        self.history = list(context.training_history)
        self.best.value, self.best.epoch = context.best_val_loss, context.best_epoch
        if context.best_model_weights is not None:
            self.best.weights = {
                name: tensor.detach().clone() for name, tensor in context.best_model_weights.items()
            }
        self.early_stopping.best_value = context.early_stopping_best
        self.early_stopping.epochs_without_improvement = context.epochs_without_improvement
        self.early_stopping.stopped = context.stopped_early
        self.early_stopping.reason = context.stop_reason
        self._applied_overrides = context.applied_overrides

    def _apply_overrides(self) -> None:
        """Sets an asked learning rate once, after loading a context has set the checkpoint's.

        More epochs are no state: the training is then that of the longer strategy.
        """
        rate = self.config.overrides.get("learning_rate")
        if rate is None or self._applied_overrides.get("learning_rate") == rate:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if "initial_lr" in group:
                group["initial_lr"] = rate
        if self.scheduler is not None and hasattr(self.scheduler, "base_lrs"):
            self.scheduler.base_lrs = [rate for _ in self.optimizer.param_groups]
        self._applied_overrides = {"learning_rate": rate}

    def _train_epoch(self, examples: Any) -> None:
        """From the epoch's next batch to its last."""
        config = self.config
        self._epoch_began = time.monotonic()
        batches = epoch_batches(
            examples,
            seed=config.seed,
            epoch=self.epoch,
            batch_size=config.batch_size,
            start=self.batch,
            workers=config.workers,
        )
        while self.batch < self._batches:
            first = self.batch
            group = min(config.accumulate, self._batches - first)
            began = time.monotonic()
            loss_sum, count = 0.0, 0
            self.optimizer.zero_grad(set_to_none=True)
            self._whole = self._whole and not any(True for _ in self.model.buffers())
            for number in range(first, first + group):
                inputs, targets = next(batches)
                loss = self._forward_backward(number, group, inputs, targets)
                loss_sum += loss * len(targets)
                count += len(targets)
            self._whole = False
            norm = self._clip()
            self.optimizer.step()
            if self.scheduler is not None and config.scheduler_interval == "step":
                self._advance_schedule(loss_sum / count)
            self.step += 1
            self.batch += group
            self._loss_sum += loss_sum
            self._examples += count
            self._whole = True
            rate = count / max(time.monotonic() - began, 1e-9)
            self._report_step(loss_sum / count, rate, norm)
            if self.batch < self._batches:
                self._between_steps(epochs_done=None)

    def _forward_backward(
        self, number: int, group: int, inputs: torch.Tensor, targets: torch.Tensor
    ) -> float:
        """One batch of a group; its gradients are added to the group's mean."""
        reseed(self.config.seed, "step", self.epoch, number, 0)
        loss = self.loss(self.model(inputs), targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise EverstepError(
                Reason.NON_FINITE_LOSS,
                f"the loss is {value} in epoch {self.epoch}, batch {number} (step "
                f"{self.step + 1}); lower the learning rate, clip gradients, or look at the data",
            )
        (loss / group).backward()
        return value

    def _clip(self) -> float | None:
        if self.config.gradient_clip <= 0:
            return None
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        return float(norm)

    def _end_epoch(self, validation: Any) -> None:
        """Evaluates, keeps the best, advances the schedule and looks at early stopping."""
        metrics = {"train_loss": self._loss_sum / max(self._examples, 1)}
        if len(validation):
            metrics |= evaluate(
                self.model,
                self.loss,
                validation,
                task=self.config.task,
                prefix="val",
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                epoch=self.epoch,
                between_batches=self._stop_if_asked,
            )
        self._whole = False
        value = self._monitored(metrics)
        is_best = self.best.offer(value, self.epoch, self.model)
        self.early_stopping.observe(value, self.epoch)
        if self.scheduler is not None and self.config.scheduler_interval == "epoch":
            self._advance_schedule(value)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.history.append(EpochRecord(self.epoch, metrics, rate, is_best))
        done = self.epoch
        self.epoch, self.batch = done + 1, 0
        self._loss_sum, self._examples = 0.0, 0
        self._whole = True
        seconds = time.monotonic() - self._epoch_began
        self._report(EpochCompleted(done, metrics, rate, is_best, seconds))

    def _monitored(self, metrics: Mapping[str, float]) -> float:
        if self.config.monitor not in metrics:
            raise EverstepError(
                Reason.INVALID_STRATEGY,
                f"early_stopping.monitor names {self.config.monitor}, but there are only "
                f"{', '.join(sorted(metrics))}",
            )
        return metrics[self.config.monitor]

    def _advance_schedule(self, value: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        elif self.scheduler is not None:
            self.scheduler.step()

    def _between_steps(self, epochs_done: int | None) -> None:
        """Where a training may stop, and where its checkpoints are taken."""
        self._stop_if_asked()
        if self._token.take_checkpoint_request():
            self._checkpoint_callback("REQUESTED", self.capture())
            self._cadence.taken(time.monotonic())
            return
        ended = self.epoch >= self.config.epochs or self.early_stopping.stopped
        if ended or not self._cadence.due(self.step, epochs_done, time.monotonic()):
            return
        if self._checkpoint_callback("PERIODIC", self.capture()):
            self._cadence.taken(time.monotonic())
        elif not self._cadence.delayed:
            self._cadence.delayed = True
            self._report(
                CheckpointDelayed(
                    self.step,
                    "the checkpoint before is still on its way to the store; this one is taken "
                    "as soon as there is room",
                )
            )

    def _stop_if_asked(self) -> None:
        if self._token.stop is not None:
            raise TrainingStopped(self._token.stop)

    def _report_step(self, loss: float, examples_per_second: float, norm: float | None) -> None:
        now = time.monotonic()
        if now - self._reported < STEP_REPORT_SECONDS:
            return
        self._reported = now
        rate = float(self.optimizer.param_groups[0]["lr"])
        self._report(StepMetrics(loss, rate, examples_per_second, norm))

    def _report(self, event: Any) -> None:
        self._progress_callback(self.position(), event)

    def position(self) -> Position:
        """How far the training is."""
        steps_per_epoch = -(-self._batches // self.config.accumulate)
        total = steps_per_epoch * self.config.epochs
        done, elapsed = self.step - self._first_step, time.monotonic() - self._began
        return Position(
            epoch=self.epoch,
            total_epochs=self.config.epochs,
            batch=self.batch,
            batches_per_epoch=self._batches,
            step=self.step,
            total_steps=total,
            eta_seconds=elapsed / done * (total - self.step) if done and elapsed > 1 else None,
        )


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The names of the optimizer's parameters, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return tuple(
        names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    )
