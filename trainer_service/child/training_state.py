"""TrainingState: everything that a resume needs, live; captured and restored in one place."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from trainer_service.child.devices import CPU
from trainer_service.child.early_stopping import EarlyStopping
from trainer_service.child.history import BestEpoch, EpochRecord
from trainer_service.child.module_modes import memory_for, module_modes, restore_modes
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.trace import StepTrace
from trainer_service.generators import (
    generator_states,
    registered_generators,
    restore_generators,
)


@dataclass
class TrainingState:
    """A training between two optimizer steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    #: Of float16 gradients; None where they need none.
    scaler: torch.amp.GradScaler | None
    #: The moving average of the weights; None where none is asked for.
    average: AveragedModel | None
    best: BestEpoch
    early_stopping: EarlyStopping
    #: The examples, where they are a stream that keeps its own position.
    stream: Any = None
    #: Where the model is.
    place: torch.device = CPU.place
    epoch: int = 0
    #: Batches of the epoch that are done.
    batch: int = 0
    #: Optimizer steps that are done.
    step: int = 0
    #: Of the epoch so far, weighted by examples.
    loss_sum: float = 0.0
    examples: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    trace: StepTrace = field(default_factory=StepTrace)
    #: Steps left out for a loss or gradient that was not finite, the last ones without a break.
    skipped: int = 0
    skipped_in_a_row: int = 0
    #: First and last step of each part that a rollback leaves out, counted from 1.
    left_out: list[tuple[int, int]] = field(default_factory=list)
    #: Overrides of a resume that are part of this state already.
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluated_model(self) -> nn.Module:
        """What is evaluated and what the best weights are: the average, where there is one."""
        if self.average is None:
            return self.model
        averaged: nn.Module = self.average.module
        return averaged

    @property
    def changes_within_a_step(self) -> bool:
        """Whether a step that is not finished has changed more than it can take back."""
        buffers = any(True for _ in self.model.buffers())
        return buffers or self.stream is not None or bool(registered_generators())

    def override_learning_rate(self, rate: float) -> None:
        """Sets an asked learning rate once, after a context has set the checkpoint's.

        More epochs are no state: the training is then that of the longer strategy.
        """
        if self.overrides.get("learning_rate") == rate:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if "initial_lr" in group:
                group["initial_lr"] = rate
        if self.scheduler is not None and hasattr(self.scheduler, "base_lrs"):
            self.scheduler.base_lrs = [rate for _ in self.optimizer.param_groups]
        self.overrides = {"learning_rate": rate}

    def capture(self, request: Any) -> TrainingResumeContext:
        """The state as a context; its tensors are the live ones.

        Args:
            request: The strategy, as plain dicts.
        """
        average = self.average
        return TrainingResumeContext(
            start_epoch=self.epoch,
            start_batch=self.batch,
            step=self.step,
            epoch_loss_sum=self.loss_sum,
            epoch_examples=self.examples,
            model_weights=self.model.state_dict(),
            average_weights=None if average is None else average.state_dict(),
            optimizer_state=self.optimizer.state_dict(),
            scheduler_state=None if self.scheduler is None else self.scheduler.state_dict(),
            scaler_state=None if self.scaler is None else self.scaler.state_dict(),
            module_modes=module_modes(self.model),
            training_history=tuple(self.history),
            best_model_weights=self.best.weights,
            best_val_loss=self.best.value,
            best_epoch=self.best.epoch,
            original_request=request,
            early_stopping_best=self.early_stopping.best_value,
            epochs_without_improvement=self.early_stopping.epochs_without_improvement,
            stopped_early=self.early_stopping.stopped,
            stop_reason=self.early_stopping.reason,
            generators=generator_states(),
            stream_state=None if self.stream is None else self.stream.state_dict(),
            trace=self.trace.tensors(),
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            left_out=tuple(self.left_out),
            parameter_names=parameter_names(self.model, self.optimizer),
            applied_overrides=self.overrides,
        )

    def restore(self, context: TrainingResumeContext) -> None:
        """Takes a context over: everything is built by now, so its values win.

        The optimizer comes before the scheduler, which overwrites learning rates when it is built.
        """
        self._restore_model(context)
        self._restore_optimizer(context)
        self.epoch, self.batch, self.step = context.start_epoch, context.start_batch, context.step
        self.loss_sum, self.examples = context.epoch_loss_sum, context.epoch_examples
        self.history = list(context.training_history)
        self.best.value, self.best.epoch = context.best_val_loss, context.best_epoch
        if context.best_model_weights is not None:
            self.best.weights = {
                name: tensor.detach().to(self.place, copy=True)
                for name, tensor in context.best_model_weights.items()
            }
        self.early_stopping.best_value = context.early_stopping_best
        self.early_stopping.epochs_without_improvement = context.epochs_without_improvement
        self.early_stopping.stopped = context.stopped_early
        self.early_stopping.reason = context.stop_reason
        restore_generators(context.generators)
        if self.stream is not None:
            self.stream.load_state_dict(context.stream_state)
        self.trace.restore(context.trace)
        self.skipped = context.skipped
        self.skipped_in_a_row = context.skipped_in_a_row
        self.left_out = list(context.left_out)
        self.overrides = dict(context.applied_overrides)

    def _restore_model(self, context: TrainingResumeContext) -> None:
        restore_modes(self.model, context.module_modes)
        self.model.load_state_dict(dict(context.model_weights))
        if self.average is not None and context.average_weights is not None:
            self.average.load_state_dict(dict(context.average_weights))

    def _restore_optimizer(self, context: TrainingResumeContext) -> None:
        before = {parameter: dict(values) for parameter, values in self.optimizer.state.items()}
        self.optimizer.load_state_dict(dict(context.optimizer_state))
        # What comes to another device is a copy by that; the rest is the context's own still.
        shared = {
            id(value)
            for values in context.optimizer_state["state"].values()
            for value in values.values()
        }
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if not isinstance(value, torch.Tensor):
                    continue
                there = before.get(parameter, {}).get(name) if id(value) in shared else value
                target = memory_for(value, parameter, there)
                if target is not value:
                    targets.append(target)
                    sources.append(value)
                    values[name] = target
        if targets:
            torch._foreach_copy_(targets, sources)
        if self.scheduler is not None and context.scheduler_state is not None:
            self.scheduler.load_state_dict(copy.deepcopy(dict(context.scheduler_state)))
            # Torch warns of schedulers that advance before their optimizer has: this one has.
            self.optimizer._opt_called = context.step > 0  # type: ignore[attr-defined]
        if self.scaler is not None and context.scaler_state is not None:
            self.scaler.load_state_dict(dict(context.scaler_state))


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The names of the optimizer's parameters, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return tuple(
        names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    )
