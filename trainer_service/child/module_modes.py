"""What a model is beside its tensors: modes, frozen parameters, memory formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

#: Of a model that nobody changed.
PLAIN_MODES: Final[Mapping[str, Any]] = {"evaluating": [], "frozen": [], "channels_last": []}
_FORMATS: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


def module_modes(model: nn.Module) -> dict[str, Any]:
    """Modules in evaluation mode, frozen parameters and tensors in channels-last, by name."""
    return {
        "evaluating": [name for name, module in model.named_modules() if not module.training],
        "frozen": [name for name, value in model.named_parameters() if not value.requires_grad],
        "channels_last": [
            name for name, value in model.state_dict().items() if _is_channels_last(value)
        ],
    }


def restore_modes(model: nn.Module, modes: Mapping[str, Any]) -> None:
    """Makes a model what `module_modes` said."""
    evaluating, frozen = set(modes["evaluating"]), set(modes["frozen"])
    channels_last = set(modes["channels_last"])
    for name, module in model.named_modules():
        module.training = name not in evaluating
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() in _FORMATS and (name in channels_last) != _is_channels_last(tensor):
            wanted = _FORMATS[tensor.dim()] if name in channels_last else torch.contiguous_format
            tensor.data = tensor.data.contiguous(memory_format=wanted)


def memory_for(
    tensor: torch.Tensor, parameter: torch.Tensor, there: torch.Tensor | None
) -> torch.Tensor:
    """Where a tensor of a parameter's state may be copied to, laid out as the parameter is.

    Args:
        there: What stands in its place; memory that is there costs no page faults.
    """
    like = parameter if tensor.shape == parameter.shape else tensor
    wanted = torch.empty_like(like, dtype=tensor.dtype, device="meta")
    if there is not None and (there.shape, there.stride(), there.dtype, there.device) == (
        wanted.shape,
        wanted.stride(),
        tensor.dtype,
        tensor.device,
    ):
        return there
    return torch.empty_strided(
        wanted.shape, wanted.stride(), dtype=tensor.dtype, device=tensor.device
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The whole model in evaluation mode; after that each module in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_channels_last(tensor: torch.Tensor) -> bool:
    wanted = _FORMATS.get(tensor.dim())
    return (
        wanted is not None
        and tensor.is_contiguous(memory_format=wanted)
        and not tensor.is_contiguous()
    )
