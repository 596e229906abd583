"""One optimizer step, of one batch or several: precision, clipping, averaging."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer_service.child.training_state import TrainingState
from trainer_service.generators import registered_generators

#: The type of weights, inputs and floating-point targets, where it is not float32.
_TYPES: Final = {"float64": torch.float64}
#: The type of forward passes by precision, where it is not the weights'.
AUTOCAST_TYPES: Final = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}


def weights_type(precision: str) -> torch.dtype:
    """The type of the weights, and of what a model is given."""
    return _TYPES.get(precision, torch.float32)


def gradient_scaler(precision: str, place: torch.device) -> torch.amp.GradScaler | None:
    """What keeps small gradients of a precision from vanishing; None where none can."""
    return torch.amp.GradScaler(place.type) if precision == "fp16-mixed" else None


def moving_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the weights; buffers are copied, not averaged.

    The model's registered generators are the average's as well: there is one position to keep.
    """
    if decay is None:
        return None
    shared = {id(generator): generator for generator in registered_generators()}
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    average.module = copy.deepcopy(model, dict(shared))
    return average


class Optimization:
    """Takes the steps of a training.

    Args:
        state: Whose model and optimizer are changed.
        loss: Called with (outputs, targets); a scalar.
        precision: As in the strategy.
        gradient_clip: The greatest norm of the gradients; 0: not clipped.
        keep_buffers: Whether buffers can be put back as they were before the step.
    """

    def __init__(
        self,
        state: TrainingState,
        loss: nn.Module,
        precision: str,
        gradient_clip: float,
        keep_buffers: bool,
    ) -> None:
        self._state = state
        self._loss = loss
        self._autocast_type = AUTOCAST_TYPES.get(precision)
        self._gradient_clip = gradient_clip
        self._keep_buffers = keep_buffers
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def autocast(self) -> AbstractContextManager[Any]:
        """Around every forward pass."""
        return torch.autocast(
            self._state.place.type,
            dtype=self._autocast_type or torch.bfloat16,
            enabled=self._autocast_type is not None,
        )

    def begin(self) -> None:
        """Before the first batch of a step."""
        self._state.optimizer.zero_grad(set_to_none=True)
        if self._keep_buffers:
            self._kept = [(buffer, buffer.clone()) for buffer in self._state.model.buffers()]

    def accumulate(self, inputs: torch.Tensor, targets: torch.Tensor, batches: int) -> float:
        """Adds one batch's gradients to the mean of `batches`; returns its loss.

        A loss that is not finite adds nothing.
        """
        with self.autocast():
            loss = self._loss(self._state.model(inputs), targets)
        value = float(loss.detach())
        if math.isfinite(value):
            scaler = self._state.scaler
            share = loss / batches
            (share if scaler is None else scaler.scale(share)).backward()
        return value

    def norm(self) -> float:
        """The norm of all gradients; infinite or NaN where one of them is.

        Float16's own overflow is no fault: the scaler leaves the step out and scales less.
        """
        if self._state.scaler is not None:
            self._state.scaler.unscale_(self._state.optimizer)
        gradients = [p.grad for p in self._state.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def update(self, norm: float) -> None:
        """Takes the step, with gradients of that norm."""
        state = self._state
        if self._gradient_clip > 0 and math.isfinite(norm):
            nn.utils.clip_grads_with_norm_(
                state.model.parameters(), self._gradient_clip, torch.tensor(norm)
            )
        if state.scaler is None:
            state.optimizer.step()
        else:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        if state.average is not None and math.isfinite(norm):
            state.average.update_parameters(state.model)

    def leave_out(self) -> None:
        """Drops the step's gradients and what its forward passes did to the buffers."""
        self._state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, kept in self._kept:
                buffer.copy_(kept)
