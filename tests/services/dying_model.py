"""A team's own model whose training dies in mid-step, in all the ways that there are.

The folder EVERSTEP_TEST_DEATHS holds a file for each death to come, named by a number and one of
DEATHS; each is taken away before it is died. A FIFO `gate` there holds the first one up until it
was opened and closed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_service.strategies.models import cnn

#: Batches that a process trains before it dies: past its first snapshots.
BATCHES = 60
#: Memory of the control group that the kernel is to kill in: enough for a trainer and torch.
GROUP_BYTES = 1 << 30


def _without_memory(allocate: Callable[[int], object]) -> Callable[[], None]:
    def fail() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        allocate(1 << 30)

    return fail


def _segmentation_fault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def _eat() -> None:
    """Takes twice what its control group has, and no more of the machine."""
    eaten = [torch.ones(1 << 18) for _ in range(2 * GROUP_BYTES >> 20)]
    raise AssertionError(f"still alive with {len(eaten)} MiB")


DEATHS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": _segmentation_fault,
    "exit": lambda: os._exit(3),
    "allocator": _without_memory(lambda size: torch.ones(size, dtype=torch.uint8)),
    "MemoryError": _without_memory(bytearray),
    "kernel": _eat,
}


class DyingModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.batches = 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.batches += self.training
        if self.training and self.batches == BATCHES:
            _die_if_wanted(Path(os.environ["EVERSTEP_TEST_DEATHS"]))
        return self.model(inputs)


def _die_if_wanted(folder: Path) -> None:
    gate = folder / "gate"
    if gate.exists():
        gate.read_bytes()
        gate.unlink()
    deaths = sorted(folder.glob("*-*"))
    if deaths:
        deaths[0].unlink()
        DEATHS[deaths[0].name.partition("-")[2]]()


def dying_cnn(input_shape: tuple[int, ...], output_size: int, **arguments: Any) -> nn.Module:
    """The built-in cnn, in a model that dies."""
    return DyingModel(cnn(input_shape, output_size, **arguments))


def too_large(input_shape: tuple[int, ...], output_size: int, how: str) -> nn.Module:
    """A model that fits into no machine."""
    del input_shape, output_size
    if how == "bytes":
        raise AssertionError(len(bytearray(1 << 60)))
    return nn.Linear(1 << 25, 1 << 25)
