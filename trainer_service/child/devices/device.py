"""Device: the CPU, and the operations that another device does in a way of its own."""

from __future__ import annotations

import mmap
from typing import Final

import torch


class Device:
    """Where a training computes; this one is the CPU, and does nothing that need not be done.

    What trains knows a Device and does not ask for its kind.
    """

    def __init__(self, place: torch.device) -> None:
        #: Where model, loss, batches and the optimizer's state are.
        self.place = place
        #: For messages.
        self.description = str(place)

    def start(self) -> None:
        """Makes it ready, before anything is computed on it.

        Raises:
            EverstepError: ENVIRONMENT_MISMATCH where there is no such device.
        """

    def fingerprint(self) -> dict[str, str]:
        """What of it decides the bytes of a training, beside its host."""
        return {"device": self.place.type}

    def received(self, tensor: torch.Tensor) -> torch.Tensor:
        """A part of a batch, on this device; what is there already is given back as it is."""
        return tensor

    def pin(self, memory: mmap.mmap) -> None:
        """Makes memory of snapshots fit for the fastest copies to and from it."""

    def unpin(self, memory: mmap.mmap) -> None:
        """Takes `pin` back; before the memory is given back, for its address is used again."""

    def copy_out(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        """Copies tensors into views of such memory; they are there when this returns."""
        torch._foreach_copy_(targets, sources)


CPU: Final = Device(torch.device("cpu"))
