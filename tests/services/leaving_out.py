"""A team's own model factory that leaves a piece of the state out when its training is resumed.

The training process imports it (EVERSTEP_ALLOWED_PACKAGES=tests); the product knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.training_state import TrainingState
from trainer_service.strategies.models import cnn

Context = TrainingResumeContext


def _optimizer_left_out(context: Context) -> Context:
    return replace(context, optimizer_state={**context.optimizer_state, "state": {}})


def _weights_left_out(context: Context) -> Context:
    zeros = {name: torch.zeros_like(value) for name, value in context.model_weights.items()}
    return replace(context, model_weights=zeros)


#: What check 15 to 21 of the source report speak of, and a context without it.
PIECES: dict[str, Callable[[Context], Context]] = {
    "nothing": lambda context: context,
    "weights": _weights_left_out,
    "optimizer": _optimizer_left_out,
    "position": lambda context: replace(context, start_epoch=0, start_batch=0),
    "history": lambda context: replace(context, training_history=()),
    "scheduler": lambda context: replace(context, scheduler_state=None),
    "best weights": lambda context: replace(context, best_model_weights=None),
    "best metric": lambda context: replace(context, best_val_loss=None),
}


def cnn_leaving_out(
    input_shape: tuple[int, ...], output_size: int, piece: str, **arguments: Any
) -> nn.Module:
    """The built-in cnn; a training state made after it restores all but one piece."""
    restore = TrainingState.restore

    def restore_without(self: TrainingState, context: Context) -> None:
        restore(self, PIECES[piece](context))

    TrainingState.restore = restore_without  # type: ignore[method-assign]
    return cnn(input_shape, output_size, **arguments)
