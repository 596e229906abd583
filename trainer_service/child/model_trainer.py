"""ModelTrainer: the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from everstep.errors import EverstepError, Reason
from trainer_service.child.batches import Batch, ExampleLoader, batch_count
from trainer_service.child.cadence import SnapshotCadence
from trainer_service.child.devices import CPU, Device
from trainer_service.child.early_stopping import EarlyStopping
from trainer_service.child.evaluation import evaluate
from trainer_service.child.events import (
    CancellationToken,
    EpochCompleted,
    PhaseChanged,
    ProgressCallback,
    RollbackWanted,
    StepSkipped,
    Stop,
    TrainingStopped,
)
from trainer_service.child.forking import check_fork, fork
from trainer_service.child.heartbeat import Activity, Heartbeat
from trainer_service.child.history import BestEpoch, EpochRecord
from trainer_service.child.memory_errors import is_out_of_memory
from trainer_service.child.model_trainer_config import ModelTrainerConfig, TrainingOutcome
from trainer_service.child.non_finite import judge_epoch, judge_step
from trainer_service.child.optimization import (
    Optimization,
    gradient_scaler,
    moving_average,
    weights_type,
)
from trainer_service.child.progress_reports import ProgressReports
from trainer_service.child.randomness import reseed
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.state_size import snapshot_bytes
from trainer_service.child.training_state import TrainingState
from trainer_service.generators import generator_states, restore_generators

#: Takes a snapshot for a trigger (PERIODIC, REQUESTED, MEMORY, ...) of what the call gives.
CheckpointCallback = Callable[[str, Callable[[], TrainingResumeContext]], None]


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
        checkpoint_callback: Called when a snapshot is due, with what captures the live state.
        resume_context: What to go on from.
        state_built: Called before the first step with the bytes that a snapshot will take, and
            those of them that steps may change.
        stream: The examples, where they keep their own position (`state_dict`).
        device: Where the model is, and the batches are wanted.
        heartbeat: Told of each batch and step.
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
        state_built: Callable[[int, int], None] | None = None,
        stream: Any = None,
        device: Device = CPU,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.loss = loss
        self.config = config
        self.device = device
        self.resume_context = resume_context
        self.state = TrainingState(
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=gradient_scaler(config.precision, device.place),
            average=moving_average(model, config.ema_decay),
            best=BestEpoch(config.monitor),
            early_stopping=EarlyStopping(config.monitor, config.patience, config.min_delta),
            stream=stream,
            place=device.place,
        )
        self.optimization = Optimization(
            self.state,
            loss,
            config.precision,
            config.gradient_clip,
            keep_buffers=config.non_finite == "skip",
        )
        self.reports = ProgressReports(self.state, config, progress_callback)
        self._token = cancellation_token or CancellationToken()
        self._checkpoint_callback = checkpoint_callback or (lambda _trigger, _capture: None)
        self._state_built = state_built or (lambda _length, _changing: None)
        self.heartbeat = heartbeat or Heartbeat()
        self._cadence = SnapshotCadence(config.checkpoint, config.stall_budget, time.monotonic())
        #: Whether the live state is that of a whole optimizer step.
        self._whole = True
        self._epoch_began = 0.0
        if resume_context is not None and config.forked_from is not None:
            check_fork(resume_context, config.forked_from, config.request, config.epochs)
            fork(
                self.state,
                resume_context,
                config.forked_from,
                config.request,
                config.scheduler_interval,
            )
        elif resume_context is not None:
            self.state.restore(resume_context)
        if (rate := config.overrides.get("learning_rate")) is not None:
            self.state.override_learning_rate(rate)
        if config.leave_out is not None:
            self.state.left_out.append(config.leave_out)

    def train(self, examples: Any, validation: Any) -> TrainingOutcome:
        """Trains until all epochs are done or early stopping ends it.

        Args:
            examples: A data set of (input, target) pairs.
            validation: As `examples`; empty: no validation metrics.

        Raises:
            TrainingStopped: When the token asked for it; a checkpoint was taken unless discarded.
            EverstepError: NON_FINITE_LOSS.
        """
        state = self.state
        config = self.config
        self.reports.batches = batch_count(len(examples), config.batch_size)
        loader = ExampleLoader(
            examples,
            seed=config.seed,
            batch_size=config.batch_size,
            workers=config.workers,
            weighted=config.weighted,
            dtype=weights_type(config.precision),
            device=self.device,
        )
        self._state_built(*snapshot_bytes(state, self.reports.position().total_steps))
        self.heartbeat.stepped(state.step)
        self.reports.say(PhaseChanged("TRAINING"))
        try:
            while state.epoch < config.epochs and not state.early_stopping.stopped:
                self._train_epoch(loader)
                self._end_epoch(validation)
                self._between_steps(epochs_done=state.epoch)
        except TrainingStopped as stopped:
            if stopped.stop is not Stop.DISCARD:
                trigger = "SHUTDOWN" if stopped.stop is Stop.SHUTDOWN else "CANCELLATION"
                self._checkpoint_callback(trigger, self.capture)
            raise
        except RollbackWanted:
            raise
        except Exception as error:
            # Without memory a new process goes on from the newest snapshot; after an error of its
            # own a device gives nothing back.
            lost = is_out_of_memory(error) or isinstance(error, torch.AcceleratorError)
            if self._whole and not lost:
                self._checkpoint_callback("FAILURE", self.capture)
            raise
        self._checkpoint_callback("FINAL", self.capture)
        return TrainingOutcome(
            history=tuple(state.history),
            steps=state.step,
            stopped_early=state.early_stopping.stopped,
            stop_reason=state.early_stopping.reason,
            monitor=config.monitor,
            best_value=state.best.value,
            best_epoch=state.best.epoch,
        )

    def capture(self) -> TrainingResumeContext:
        """The state between two optimizer steps; its tensors are the live ones."""
        return self.state.capture(self.config.request)

    def _train_epoch(self, loader: ExampleLoader) -> None:
        """From the epoch's next batch to its last."""
        state = self.state
        self._epoch_began = time.monotonic()
        batches = self.heartbeat.drawn(loader.epoch(state.epoch, state.batch), Activity.STEP)
        while state.batch < self.reports.batches:
            group = min(self.config.accumulate, self.reports.batches - state.batch)
            self._take_step(batches, group)
            if state.batch < self.reports.batches:
                self._between_steps(epochs_done=None)

    def _take_step(self, batches: Iterator[Batch], group: int) -> None:
        """One optimizer step of a group of batches, and the schedule's."""
        state, began = self.state, time.monotonic()
        if any(first <= state.step + 1 <= last for first, last in state.left_out):
            self._leave_out(batches, group)
            return
        losses, counts = self._gradients(batches, group)
        finite = all(map(math.isfinite, losses))
        norm = self.optimization.norm() if finite else math.nan
        if not finite or (state.scaler is None and not math.isfinite(norm)):
            skipped = judge_step(
                self.config.non_finite, state, self.reports.position(), losses, norm
            )
            self.optimization.leave_out()
            self.reports.say(StepSkipped(skipped))
            self._leave_out(batches, group - len(losses))
            return
        self._whole = False
        self.optimization.update(norm)
        loss_sum = sum(loss * count for loss, count in zip(losses, counts, strict=True))
        self._advance_schedule("step", loss_sum / sum(counts))
        state.loss_sum += loss_sum
        state.examples += sum(counts)
        state.skipped_in_a_row = 0
        self._count_step(group, losses, norm)
        self.reports.stepped(loss_sum / sum(counts), norm, sum(counts), time.monotonic() - began)

    def _gradients(self, batches: Iterator[Batch], group: int) -> tuple[list[float], list[int]]:
        """Losses and examples of a group of batches, up to a loss that is not finite."""
        state = self.state
        losses: list[float] = []
        counts: list[int] = []
        self.optimization.begin()
        self._whole = self._whole and not state.changes_within_a_step
        for number in range(state.batch, state.batch + group):
            inputs, targets = next(batches)
            reseed(self.config.seed, "step", state.epoch, number, 0)
            losses.append(self.optimization.accumulate(inputs, targets, group))
            counts.append(len(targets))
            if not math.isfinite(losses[-1]):
                break
        return losses, counts

    def _leave_out(self, batches: Iterator[Batch], undrawn: int) -> None:
        """Goes past a step without taking it; of its batches some are not drawn yet."""
        group = min(self.config.accumulate, self.reports.batches - self.state.batch)
        for _ in range(undrawn):
            next(batches)
        self._advance_schedule("step", None)
        self.state.skipped += 1
        self._count_step(group, [], math.nan)

    def _count_step(self, group: int, losses: list[float], norm: float) -> None:
        state = self.state
        state.step += 1
        state.batch += group
        state.trace.add(
            losses,
            norm,
            [float(values["lr"]) for values in state.optimizer.param_groups],
            list(state.model.parameters()),
        )
        self._whole = True
        self.heartbeat.stepped(state.step)

    def _end_epoch(self, validation: Any) -> None:
        """Evaluates, keeps the best, advances the schedule and looks at early stopping."""
        state = self.state
        metrics = {"train_loss": state.loss_sum / max(state.examples, 1)}
        if len(validation):
            metrics |= self._evaluate(validation)
        judge_epoch(self.config.non_finite, state, self.reports.position(), metrics)
        self._whole = False
        value = self._monitored(metrics)
        is_best = state.best.offer(value, state.epoch, state.evaluated_model)
        state.early_stopping.observe(value, state.epoch)
        self._advance_schedule("epoch", value)
        rate = float(state.optimizer.param_groups[0]["lr"])
        state.history.append(EpochRecord(state.epoch, metrics, rate, is_best))
        done = state.epoch
        state.epoch, state.batch = done + 1, 0
        state.loss_sum, state.examples = 0.0, 0
        self._whole = True
        seconds = time.monotonic() - self._epoch_began
        self.reports.say(EpochCompleted(done, metrics, rate, is_best, seconds))

    def _evaluate(self, validation: Any) -> dict[str, float]:
        """The validation metrics; one that is stopped leaves the generators as they were."""
        config, state = self.config, self.state
        generators, began = generator_states(), time.monotonic()
        try:
            metrics = evaluate(
                state.evaluated_model,
                self.loss,
                validation,
                task=config.task,
                prefix="val",
                batch_size=config.batch_size,
                seed=config.seed,
                epoch=state.epoch,
                between_batches=self._stop_if_asked,
                autocast=self.optimization.autocast,
                dtype=weights_type(config.precision),
                device=self.device,
                heartbeat=self.heartbeat,
            )
        except TrainingStopped:
            restore_generators(generators)
            raise
        self.reports.pace.evaluated(time.monotonic() - began)
        return metrics

    def _monitored(self, metrics: Mapping[str, float]) -> float:
        if self.config.monitor not in metrics:
            raise EverstepError(
                Reason.INVALID_STRATEGY,
                f"early_stopping.monitor names {self.config.monitor}, but there are only "
                f"{', '.join(sorted(metrics))}",
            )
        return metrics[self.config.monitor]

    def _advance_schedule(self, interval: str, value: float | None) -> None:
        """After a step or an epoch; a plateau's schedule learns nothing of a step left out."""
        scheduler = self.state.scheduler
        if scheduler is None or self.config.scheduler_interval != interval:
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            if value is not None:
                scheduler.step(value)
        else:
            scheduler.step()

    def _between_steps(self, epochs_done: int | None) -> None:
        """Where a training may stop, and where its snapshots are taken."""
        self._stop_if_asked()
        if self._token.take_checkpoint_request():
            self._take_snapshot("REQUESTED")
            return
        state = self.state
        if state.epoch >= self.config.epochs or state.early_stopping.stopped:
            return
        if trigger := self._cadence.due(state.step, epochs_done, time.monotonic()):
            self._take_snapshot(trigger)

    def _take_snapshot(self, trigger: str) -> None:
        began = time.monotonic()
        self._checkpoint_callback(trigger, self.capture)
        now = time.monotonic()
        self._cadence.taken(trigger, now - began, now)
        self.reports.pace.snapshot_taken(now - began)

    def _stop_if_asked(self) -> None:
        stop = self._token.stop
        if stop is not None:
            raise TrainingStopped(stop)
