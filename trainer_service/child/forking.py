"""Forks: another strategy goes on from a checkpoint's state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from everstep.errors import EverstepError, FieldViolation, Reason
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.training_state import TrainingState

#: What decides which batches an epoch has, and what they are.
_BATCHES: Final = ("data", "seed", "training.batch_size", "training.accumulate")
#: What a metric depends on, beside the weights.
_METRICS: Final = ("data", "loss", "training.early_stopping.monitor")
#: What the length of a OneCycleLR depends on.
_LENGTHS: Final = ("training.epochs", "training.batch_size", "training.accumulate", "data")
#: Parts of a strategy that change no bits.
_FREE: Final = frozenset({"name", "checkpoint"})
_DIFFERENCES_NAMED: Final = 3


def check_fork(
    context: TrainingResumeContext, before: Mapping[str, Any], now: Mapping[str, Any], epochs: int
) -> None:
    """Refuses a fork that has no place to begin.

    Args:
        context: The state to begin with.
        before: The strategy it was made with, as plain dicts.
        now: The fork's.
        epochs: The fork's total.

    Raises:
        EverstepError: INVALID_STRATEGY.
    """
    changed = [name for name in _BATCHES if _changed(before, now, name)]
    if context.start_batch and changed:
        raise _refused(
            changed[0],
            f"it cannot change within epoch {context.start_epoch}; fork from a checkpoint at an "
            "epoch's end, or leave it as it was",
        )
    if context.start_epoch >= epochs:
        raise _refused(
            "training.epochs",
            f"the checkpoint has {context.start_epoch} epochs done; ask for more than that",
        )


def check_weights(context: TrainingResumeContext, model: nn.Module) -> None:
    """Refuses weights that are not those of the model.

    Raises:
        EverstepError: INVALID_STRATEGY, with the first tensors that do not fit.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in context.model_weights.items()}
    unlike = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
    if unlike:
        described = ", ".join(
            f"{name} is {_shape(given.get(name))}, not {_shape(wanted.get(name))}"
            for name in unlike[:_DIFFERENCES_NAMED]
        )
        raise _refused("model", f"the checkpoint's weights do not fit: {described}")


def fork(
    state: TrainingState,
    context: TrainingResumeContext,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    interval: str,
) -> None:
    """Takes over of a context what still holds under the fork's strategy.

    Weights, the optimizer's moments, position and history go on. Hyperparameters are the fork's; a
    changed schedule stands where it would have stood at this position. Early stopping begins anew;
    the best epoch too, where its metric is no longer comparable.

    Args:
        state: Built, with nothing in it yet.
        interval: When the scheduler advances: epoch or step.

    Raises:
        EverstepError: INVALID_STRATEGY.
    """
    check_weights(context, state.model)
    if not (_what_counts_changed(before, now) or context.stopped_early):
        state.restore(context)
        return
    fresh = copy.deepcopy(state.capture({}))
    state.restore(_kept(context, fresh, before, now))
    if _rates_changed(context, before, now):
        groups = state.optimizer.param_groups
        for group, asked in zip(groups, fresh.optimizer_state["param_groups"], strict=True):
            group.update({name: value for name, value in asked.items() if name != "params"})
        _advance_to(state, context, interval)


def _kept(
    context: TrainingResumeContext,
    fresh: TrainingResumeContext,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> TrainingResumeContext:
    """The context, with a fresh part wherever its own no longer holds."""
    changes: dict[str, Any] = {
        "early_stopping_best": None,
        "epochs_without_improvement": 0,
        "stopped_early": False,
        "stop_reason": "",
        "applied_overrides": {},
        "skipped_in_a_row": 0,
    }
    if _changed(before, now, "optimizer.name"):
        changes["optimizer_state"] = fresh.optimizer_state
        changes["parameter_names"] = fresh.parameter_names
    if _rates_changed(context, before, now):
        changes["scheduler_state"] = fresh.scheduler_state
    if any(_changed(before, now, name) for name in _METRICS):
        changes |= {"best_model_weights": None, "best_val_loss": None, "best_epoch": None}
    if context.scaler_state is None:
        changes["scaler_state"] = fresh.scaler_state
    if context.generators.keys() != fresh.generators.keys():
        changes["generators"] = fresh.generators
    if _changed(before, now, "data"):
        changes["stream_state"] = fresh.stream_state
    if _changed(before, now, "model"):
        changes["module_modes"] = fresh.module_modes
    return replace(context, **changes)


def _advance_to(state: TrainingState, context: TrainingResumeContext, interval: str) -> None:
    """Brings a fresh schedule to the position, as if it had been there from the beginning."""
    scheduler = state.scheduler
    if scheduler is None:
        return
    # The optimizer has taken its steps in the training that is forked.
    state.optimizer._opt_called = True  # type: ignore[attr-defined]
    if isinstance(scheduler, ReduceLROnPlateau):
        for record in context.training_history if interval == "epoch" else ():
            if state.best.monitor in record.metrics:
                scheduler.step(record.metrics[state.best.monitor])
        return
    for _ in range(context.step if interval == "step" else context.start_epoch):
        scheduler.step()


def _rates_changed(
    context: TrainingResumeContext, before: Mapping[str, Any], now: Mapping[str, Any]
) -> bool:
    """Whether the rates are others; an override of the checkpoint's is none of a fork's."""
    if context.applied_overrides or _changed(before, now, "scheduler"):
        return True
    if _changed(before, now, "optimizer"):
        return True
    timed = "OneCycleLR" in str(now.get("scheduler"))
    return timed and any(_changed(before, now, name) for name in _LENGTHS)


def _what_counts_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    names = {*before, *now} - _FREE
    return any(_changed(before, now, name) for name in names)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    return bool(_at(before, name) != _at(now, name))


def _at(content: Any, name: str) -> Any:
    for key in name.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    if name == "data" and isinstance(content, Mapping):
        return {key: value for key, value in content.items() if key != "workers"}
    return content


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))


def _refused(field: str, description: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_STRATEGY,
        f"the fork is refused: {field}: {description}",
        violations=[FieldViolation(field, description)],
    )
