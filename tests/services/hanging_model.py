"""A team's own model whose training hangs in mid-step, or is only slow.

The folder EVERSTEP_TEST_HANGS holds a file for each hang to come, named by a number and one of
HANGS; each is taken away before it is hung in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_service.strategies.data import Examples, LoadedData
from trainer_service.strategies.models import cnn

#: Batches that a process trains before it hangs: past its first snapshots.
BATCHES = 60
#: Seconds that a slow training's first step takes, and one of its batches to load: more than the
#: tests' limit.
LONG_SECONDS = 2.5
#: Seconds of one batch of a slow evaluation: together they are more than the limit.
EVALUATION_SECONDS = 0.1


def wait_for_a_lock_that_nobody_gives_back() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def hold_the_interpreter_in_c() -> None:
    """As an extension does that waits with the interpreter's lock held: no other thread runs."""
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)


def stop_as_a_debugger_does() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


HANGS: dict[str, Callable[[], object]] = {
    "lock": wait_for_a_lock_that_nobody_gives_back,
    "c": hold_the_interpreter_in_c,
    "stopped": stop_as_a_debugger_does,
}


class HangingModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.batches = 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.batches += self.training
        if self.training and self.batches == BATCHES:
            hangs = sorted(Path(os.environ["EVERSTEP_TEST_HANGS"]).glob("*-*"))
            if hangs:
                hangs[0].unlink()
                HANGS[hangs[0].name.partition("-")[2]]()
        return self.model(inputs)


def hanging_cnn(input_shape: tuple[int, ...], output_size: int, **arguments: Any) -> nn.Module:
    """The built-in cnn, in a model that hangs."""
    return HangingModel(cnn(input_shape, output_size, **arguments))


class SlowModel(nn.Linear):
    """Its first step is long, and so is each evaluation, batch by batch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.began = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and not self.began:
            self.began = True
            time.sleep(LONG_SECONDS)
        if not self.training:
            time.sleep(EVALUATION_SECONDS)
        return super().forward(inputs)


def slow_model(input_shape: tuple[int, ...], output_size: int) -> nn.Module:
    return SlowModel(input_shape[0], output_size)


class SlowExamples(Examples):
    """One of its batches comes late, as from a network that was away."""

    batches = 0

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches += 1
        if self.batches == 7:
            time.sleep(LONG_SECONDS)
        return super().batch(indices)


def slow_data() -> LoadedData:
    inputs = torch.linspace(-1, 1, 4 * 240).reshape(240, 4)
    labels = (inputs.sum(dim=1) > 0).long()
    held_out = Examples(inputs[80:], labels[80:])
    return LoadedData(
        SlowExamples(inputs[:80], labels[:80]), held_out, held_out, "slow-data", (4,), 2
    )
