"""Devices: what of a training depends on where it computes, behind one face."""

from __future__ import annotations

import torch

from trainer_service.child.devices.cuda import CudaDevice
from trainer_service.child.devices.device import CPU, Device

__all__ = ["CPU", "Device", "choose_device"]


def choose_device(name: str) -> Device:
    """The device of a name; nothing is started, and nothing looked for but by `auto`.

    Args:
        name: cpu, cuda, cuda:N, or auto: CUDA where torch says that it is available.
    """
    kind, _, index = name.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return CudaDevice(int(index or 0)) if kind == "cuda" else CPU
