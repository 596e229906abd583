"""Resuming with one piece left out: each must make a check fail.

A mutation stands for a line that somebody deletes from the resume. It gives the trainer what a
fresh one would have had in the place of one restored piece, or breaks one mechanism of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from trainer_service.child.model_trainer import ModelTrainer
from trainer_service.child.optimization import Optimization
from trainer_service.child.resume_context import TrainingResumeContext

Context = TrainingResumeContext


def _same_context(context: Context, _fresh: Context) -> Context | None:
    return context


def _same_trainer(_trainer: ModelTrainer) -> None:
    return


@dataclass(frozen=True)
class Mutation:
    """One thing that goes wrong."""

    name: str
    #: What the trainer is given, of the right context and that of a fresh trainer.
    context: Callable[[Context, Context], Context | None] = _same_context
    #: What is done to the trainer once it is built.
    trainer: Callable[[ModelTrainer], None] = _same_trainer
    #: Functions in the place of the product's, in the uninterrupted training as well.
    world: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


NOTHING = Mutation("nothing")


def _without(name: str, *fields: str) -> Mutation:
    """The fields as a fresh trainer has them."""
    return Mutation(
        name,
        lambda context, fresh: replace(
            context, **{member: getattr(fresh, member) for member in fields}
        ),
    )


def _fresh_tensors(context: Context, fresh: Context, suffixes: tuple[str, ...]) -> Context:
    weights = {
        name: fresh.model_weights[name] if name.endswith(suffixes) else tensor
        for name, tensor in context.model_weights.items()
    }
    return replace(context, model_weights=weights)


def _optimizer(
    context: Context, change: Callable[[dict[str, Any]], None], group: dict[str, Any] | None = None
) -> Context:
    state = copy.deepcopy(dict(context.optimizer_state))
    for values in state["state"].values():
        change(values)
    for member in state["param_groups"]:
        member.update(group or {})
    return replace(context, optimizer_state=state)


def _zero_steps(values: dict[str, Any]) -> None:
    if "step" in values:
        values["step"] = torch.zeros_like(values["step"])


def _zero_moments(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name != "step" and isinstance(value, torch.Tensor):
            values[name] = torch.zeros_like(value)


def _fresh_groups(context: Context, fresh: Context) -> Context:
    groups = fresh.optimizer_state["param_groups"]
    return replace(context, optimizer_state={**context.optimizer_state, "param_groups": groups})


def _part_of_scheduler(context: Context, fresh: Context, *names: str) -> Context:
    if context.scheduler_state is None or fresh.scheduler_state is None:
        return context
    state = {
        name: fresh.scheduler_state[name] if name in names else value
        for name, value in context.scheduler_state.items()
    }
    return replace(context, scheduler_state=state)


def _alias_best(trainer: ModelTrainer) -> None:
    offer = trainer.state.best.offer

    def offer_live_tensors(value: float, epoch: int, model: nn.Module) -> bool:
        better = offer(value, epoch, model)
        if better:
            trainer.state.best.weights = model.state_dict()
        return better

    trainer.state.best.offer = offer_live_tensors  # type: ignore[method-assign]


def _any_epoch_is_best(trainer: ModelTrainer) -> None:
    offer = trainer.state.best.offer

    def offer_unconditionally(value: float, epoch: int, model: nn.Module) -> bool:
        trainer.state.best.value = None
        return offer(value, epoch, model)

    trainer.state.best.offer = offer_unconditionally  # type: ignore[method-assign]


def _never_better(trainer: ModelTrainer) -> None:
    def offer_in_vain(value: float, epoch: int, model: nn.Module) -> bool:  # noqa: ARG001
        return False

    trainer.state.best.offer = offer_in_vain  # type: ignore[method-assign]


def _skip_first_epoch(trainer: ModelTrainer) -> None:
    trainer.state.epoch = max(trainer.state.epoch, 1)


def _skip_first_step(trainer: ModelTrainer) -> None:
    trainer.state.batch += 1


def _forget_context(trainer: ModelTrainer) -> None:
    trainer.resume_context = None


def _random_order(count: int, _seed: int, _epoch: int) -> torch.Tensor:
    return torch.randperm(count)


def _random_weighted_order(weights: torch.Tensor, _seed: int, _epoch: int) -> torch.Tensor:
    return torch.multinomial(weights, len(weights), replacement=True)


def _nothing() -> tuple[Any, ...]:
    return ()


def _seek_nowhere(_stream: Any, _position: int) -> None:
    return


def _global_generator(*_parts: str | int) -> torch.Generator:
    return torch.default_generator


def _no_overrides(_state: Any, _rate: float) -> None:
    return


def _no_seeds(*_parts: str | int) -> None:
    return


def _fresh_average(context: Context, fresh: Context, *names: str) -> Context:
    if context.average_weights is None or fresh.average_weights is None:
        return context
    weights = {
        name: fresh.average_weights[name] if name in names else tensor
        for name, tensor in context.average_weights.items()
    }
    return replace(context, average_weights=weights)


def _fresh_mode(name: str) -> Mutation:
    return Mutation(
        f"modules {name.replace('_', ' ')}",
        lambda context, fresh: replace(
            context, module_modes={**context.module_modes, name: fresh.module_modes[name]}
        ),
    )


def _keep_buffers_as_they_are(optimization: Optimization) -> None:
    optimization._kept = []
    optimization._state.optimizer.zero_grad(set_to_none=True)


CONTEXT_IGNORED = Mutation("context ignored", lambda _context, _fresh: None)
CONTEXT_FORGOTTEN = Mutation("context forgotten", trainer=_forget_context)
WEIGHTS = _without("weights", "model_weights")
BUFFERS = Mutation(
    "BatchNorm buffers",
    lambda context, fresh: _fresh_tensors(context, fresh, ("running_mean", "running_var")),
)
BATCHES_TRACKED = Mutation(
    "BatchNorm count",
    lambda context, fresh: _fresh_tensors(context, fresh, ("num_batches_tracked",)),
)
OPTIMIZER_STATE = Mutation(
    "optimizer state",
    lambda context, _fresh: replace(
        context, optimizer_state={**context.optimizer_state, "state": {}}
    ),
)
OPTIMIZER_STEP = Mutation(
    "optimizer step", lambda context, _fresh: _optimizer(context, _zero_steps)
)
OPTIMIZER_MOMENTS = Mutation(
    "optimizer moments", lambda context, _fresh: _optimizer(context, _zero_moments)
)
OPTIMIZER_GROUPS = Mutation("optimizer groups", _fresh_groups)
SCHEDULER = _without("scheduler", "scheduler_state")
SCHEDULER_POSITION = Mutation(
    "scheduler position",
    lambda context, fresh: _part_of_scheduler(context, fresh, "last_epoch", "_step_count"),
)
PLATEAU_BEST = Mutation(
    "plateau best", lambda context, fresh: _part_of_scheduler(context, fresh, "best")
)
HISTORY = _without("history", "training_history")
BEST_WEIGHTS = _without("best weights", "best_model_weights")
BEST_METRIC = _without("best metric", "best_val_loss")
BEST_EPOCH = _without("best epoch", "best_epoch")
STOPPING_COUNTER = _without("early stopping counter", "epochs_without_improvement")
STOPPING_BEST = _without("early stopping best", "early_stopping_best")
STOPPED = _without("early stopping flag", "stopped_early")
STOP_REASON = _without("early stopping reason", "stop_reason")
RUNNING_LOSS = _without("running loss", "epoch_loss_sum")
RUNNING_COUNT = _without("running count", "epoch_examples")
EPOCH = _without("epoch", "start_epoch")
BATCH = _without("batch", "start_batch")
STEP = _without("step", "step")
OVERRIDES = Mutation(
    "overrides",
    world={
        "trainer_service.child.training_state.TrainingState.override_learning_rate": _no_overrides,
    },
)
APPLIED_OVERRIDES = _without("applied overrides", "applied_overrides")
AVERAGE = _without("average weights", "average_weights")
AVERAGE_COUNT = Mutation(
    "average count", lambda context, fresh: _fresh_average(context, fresh, "n_averaged")
)
SCALER = _without("gradient scaler", "scaler_state")
SCALER_GROWTH = Mutation(
    "gradient scaler's growth",
    lambda context, _fresh: replace(
        context, scaler_state={**(context.scaler_state or {}), "_growth_tracker": 0}
    ),
)
MODULES_EVALUATING = _fresh_mode("evaluating")
PARAMETERS_FROZEN = _fresh_mode("frozen")
MEMORY_FORMATS = _fresh_mode("channels_last")
GENERATORS = Mutation(
    "generators", lambda context, fresh: replace(context, generators=fresh.generators)
)
GENERATORS_OF_THE_AVERAGE = Mutation(
    "generators of the average",
    world={"trainer_service.child.optimization.registered_generators": _nothing},
)
STREAM = Mutation(
    "stream's state",
    world={"tests.training.scenarios.StatefulStream.load_state_dict": _seek_nowhere},
)
TRACE = _without("trace", "trace")
SKIPPED = _without("steps skipped", "skipped")
SKIPPED_IN_A_ROW = _without("steps skipped in a row", "skipped_in_a_row")
LEFT_OUT = _without("steps left out", "left_out")
SKIPPED_BUFFERS = Mutation(
    "buffers of a skipped step",
    world={"trainer_service.child.optimization.Optimization.leave_out": _keep_buffers_as_they_are},
)
SAMPLE_WEIGHTS = Mutation(
    "order of weighted draws",
    world={"trainer_service.child.batches.weighted_order": _random_weighted_order},
)
SEEK = Mutation("stream's seek", world={"tests.training.scenarios.Stream.seek": _seek_nowhere})
BEST_ALIASED = Mutation("best weights aliased", trainer=_alias_best)
BEST_REPLACED = Mutation("any epoch is best", trainer=_any_epoch_is_best)
BEST_FROZEN = Mutation("no epoch is best", trainer=_never_better)
FIRST_EPOCH = Mutation("first epoch left out", trainer=_skip_first_epoch)
FIRST_STEP = Mutation("first step left out", trainer=_skip_first_step)
SEEDS = Mutation(
    "seeds",
    world={
        "trainer_service.child.model_trainer.reseed": _no_seeds,
        "trainer_service.child.batches.reseed": _no_seeds,
    },
)
ORDER = Mutation("order", world={"trainer_service.child.batches.epoch_order": _random_order})
EXAMPLE_DRAWS = Mutation(
    "draws for examples",
    world={
        "trainer_service.child.batches.generator": _global_generator,
        "trainer_service.child.model_trainer.reseed": _no_seeds,
    },
)
