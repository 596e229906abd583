"""TrainingPipeline: from a strategy to a trained and evaluated model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from everstep.errors import EverstepError, FieldViolation, Reason
from everstep.overrides import check_overrides
from everstep.strategy import strategy_content
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from trainer_service.child.batches import keeps_its_state
from trainer_service.child.cadence import CheckpointPolicy
from trainer_service.child.devices import CPU, Device
from trainer_service.child.evaluation import METRICS, evaluate
from trainer_service.child.events import CancellationToken, PhaseChanged, ProgressCallback
from trainer_service.child.heartbeat import Activity, Heartbeat
from trainer_service.child.model_trainer import CheckpointCallback, ModelTrainer
from trainer_service.child.model_trainer_config import ModelTrainerConfig
from trainer_service.child.optimization import weights_type
from trainer_service.child.randomness import reseed
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.generators import forget_generators
from trainer_service.strategies.data import LoadedData, load_data
from trainer_service.strategies.losses import build_loss, task_of_loss
from trainer_service.strategies.models import build_model
from trainer_service.strategies.optimizers import build_optimizer
from trainer_service.strategies.schedulers import build_scheduler


@dataclass(frozen=True)
class PipelineSettings:
    """What a pipeline needs beside the strategy."""

    data_root: Path
    allowed_packages: tuple[str, ...] = ()
    #: The share of the time that snapshots for memory alone may take; 0: none are taken.
    stall_budget: float = 0.0
    #: Started.
    device: Device = CPU


class TrainingPipeline:
    """Builds what a strategy declares and trains it.

    Args:
        settings: Where data files are, which packages may be imported.
        progress_callback: Called with every event.
        cancellation_token: Looked at after every step.
        checkpoint_callback: Called when a snapshot is due, with what captures the live state.
        data_loaded: Called once the data is there.
        state_built: Called before the first step with the bytes that a snapshot will take, and
            those of them that steps may change.
        heartbeat: Told of each thing that is begun.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        progress_callback: ProgressCallback,
        cancellation_token: CancellationToken,
        checkpoint_callback: CheckpointCallback,
        data_loaded: Callable[[LoadedData], None] = lambda _data: None,
        state_built: Callable[[int, int], None] = lambda _length, _changing: None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._settings = settings
        self._progress_callback = progress_callback
        self._cancellation_token = cancellation_token
        self._checkpoint_callback = checkpoint_callback
        self._data_loaded = data_loaded
        self._state_built = state_built
        self._heartbeat = heartbeat or Heartbeat()

    def train_strategy(
        self,
        strategy: TrainingStrategy,
        overrides: Mapping[str, Any],
        resume_context: TrainingResumeContext | None = None,
        leave_out: tuple[int, int] | None = None,
        forked_from: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Trains a strategy and returns the fields of TrainingResult that are known here.

        Args:
            strategy: Resolved and valid.
            overrides: epochs and learning_rate of a resume, where asked for.
            resume_context: What to go on from; None trains from the beginning.
            leave_out: First and last step, counted from 1, that a rollback leaves out.
            forked_from: The strategy that a fork's checkpoint was made with.

        Raises:
            EverstepError: INVALID_STRATEGY, INVALID_REQUEST, NON_FINITE_LOSS.
            TrainingStopped: When the token asked for it.
            RollbackWanted: When the strategy wants it for what is not finite.
        """
        training = strategy.training
        self._heartbeat.begin(Activity.PREPARING)
        check_overrides(strategy, overrides.get("epochs"), overrides.get("learning_rate"))
        torch.use_deterministic_algorithms(training.deterministic)
        forget_generators()
        task = task_of_loss(strategy.loss)
        data = load_data(
            strategy.data,
            self._settings.data_root,
            strategy.seed,
            task,
            training.batch_size,
            self._settings.allowed_packages,
        )
        self._data_loaded(data)
        epochs = int(overrides.get("epochs", training.epochs))
        reseed(strategy.seed, "model")
        # Initialised on the CPU: the first weights are the same on every device.
        model = build_model(
            strategy.model, data.input_shape, data.output_size, self._settings.allowed_packages
        ).to(self._settings.device.place, weights_type(training.precision))
        optimizer = build_optimizer(strategy.optimizer, model.parameters())
        batches = -(-len(data.train) // training.batch_size)
        scheduler = build_scheduler(
            strategy.scheduler if strategy.HasField("scheduler") else None,
            optimizer,
            epochs,
            -(-batches // training.accumulate),
            self._settings.allowed_packages,
        )
        stopping = training.early_stopping if training.HasField("early_stopping") else None
        config = ModelTrainerConfig(
            seed=strategy.seed,
            epochs=epochs,
            batch_size=training.batch_size,
            task=task,
            accumulate=training.accumulate,
            gradient_clip=training.gradient_clip,
            monitor=monitored_metric(strategy, data),
            patience=stopping.patience if stopping is not None else None,
            min_delta=stopping.min_delta if stopping is not None else 0.0,
            scheduler_interval=strategy.scheduler.interval or "epoch",
            checkpoint=CheckpointPolicy(
                every_steps=strategy.checkpoint.every_steps,
                every_epochs=strategy.checkpoint.every_epochs,
                every_seconds=strategy.checkpoint.every_seconds,
            ),
            # A rollback goes to a checkpoint: what it leaves out must not hang on the clock.
            stall_budget=0.0 if training.non_finite == "rollback" else self._settings.stall_budget,
            workers=strategy.data.workers,
            weighted=strategy.data.sampling != "shuffle",
            precision=training.precision,
            ema_decay=training.ema_decay if training.HasField("ema_decay") else None,
            non_finite=training.non_finite,
            leave_out=leave_out,
            forked_from=forked_from,
            request=strategy_content(strategy),
            overrides=overrides,
        )
        loss = build_loss(strategy.loss).to(self._settings.device.place)
        return self.train_model(model, loss, optimizer, scheduler, data, config, resume_context)

    def train_model(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        data: LoadedData,
        config: ModelTrainerConfig,
        resume_context: TrainingResumeContext | None = None,
    ) -> dict[str, Any]:
        """Trains a model and evaluates its best weights on the held-out data."""
        trainer = ModelTrainer(
            model,
            loss,
            optimizer,
            scheduler,
            config,
            progress_callback=self._progress_callback,
            cancellation_token=self._cancellation_token,
            checkpoint_callback=self._checkpoint_callback,
            resume_context=resume_context,
            state_built=self._state_built,
            stream=data.train if keeps_its_state(data.train) else None,
            device=self._settings.device,
            heartbeat=self._heartbeat,
        )
        outcome = trainer.train(data.train, data.validation)
        metrics = dict(outcome.history[-1].metrics) if outcome.history else {}
        if len(data.test):
            trainer.reports.say(PhaseChanged("EVALUATING"))
            metrics |= self.evaluate(trainer, data, config)
        result: dict[str, Any] = {
            "epochs": len(outcome.history),
            "steps": outcome.steps,
            "stopped_early": outcome.stopped_early,
            "stop_reason": outcome.stop_reason,
            "metrics": metrics,
            "monitor": outcome.monitor,
        }
        if outcome.best_value is not None:
            result |= {"best_value": outcome.best_value, "best_epoch": outcome.best_epoch}
        return result

    def evaluate(
        self, trainer: ModelTrainer, data: LoadedData, config: ModelTrainerConfig
    ) -> dict[str, float]:
        """The held-out metrics of the best epoch's weights, which the model then holds."""
        state = trainer.state
        if state.best.weights is not None:
            state.evaluated_model.load_state_dict(state.best.weights)
        return evaluate(
            state.evaluated_model,
            trainer.loss,
            data.test,
            task=config.task,
            prefix="test",
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=config.epochs,
            between_batches=lambda: None,
            autocast=trainer.optimization.autocast,
            dtype=weights_type(config.precision),
            device=trainer.device,
            heartbeat=trainer.heartbeat,
        )


def monitored_metric(strategy: TrainingStrategy, data: LoadedData) -> str:
    """The metric that decides on the best epoch and on early stopping.

    Raises:
        EverstepError: INVALID_STRATEGY when the training has no such metric.
    """
    names = ["train_loss"]
    if len(data.validation):
        names = [f"val_{name}" for name in METRICS[task_of_loss(strategy.loss)]] + names
    if not strategy.training.HasField("early_stopping"):
        return names[0]
    monitor = strategy.training.early_stopping.monitor
    if monitor in names:
        return monitor
    if monitor.startswith("val_") and not len(data.validation):
        description = (
            f"{monitor} needs validation data; set data.split.validation, or monitor train_loss"
        )
    else:
        description = f"there is no metric {monitor!r}; there are {', '.join(names)}"
    raise EverstepError(
        Reason.INVALID_STRATEGY,
        f"the strategy is refused: training.early_stopping.monitor: {description}",
        violations=[FieldViolation("training.early_stopping.monitor", description)],
    )
