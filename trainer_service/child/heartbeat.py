"""The heartbeat of a training: what its loop does now, in memory that the trainer looks at.

Written by the loop itself, and not by a thread beside it, which would go on while the loop hangs.
Imports neither torch nor gRPC.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

#: Beats, steps done, activity, whether it is the first of its kind.
_BEAT: Final = struct.Struct("<QQB?")
#: Where stacks are written, behind the heartbeat.
STACKS_OFFSET: Final = mmap.PAGESIZE
#: A process that gets it writes the stacks of all its threads down.
STACKS_SIGNAL: Final = signal.SIGUSR1

T = TypeVar("T")


class Activity(IntEnum):
    """What a training loop does."""

    #: Imports, data, model, restored state, steps run again as a proof.
    PREPARING = 0
    #: Waiting for the next batch.
    LOADING = 1
    #: The forward and backward pass of a batch, and the optimizer.
    STEP = 2
    #: One batch of an evaluation.
    EVALUATION = 3
    SNAPSHOT = 4


@dataclass(frozen=True)
class Beat:
    """What a training did when it was looked at."""

    #: Goes up with each thing that is begun.
    number: int = 0
    #: Optimizer steps done.
    step: int = 0
    activity: Activity = Activity.PREPARING
    #: Whether this process has done nothing of this kind before: the first step compiles.
    first: bool = True

    @classmethod
    def read(cls, memory: mmap.mmap) -> Beat:
        """The newest; one that is just being written is seen half, and another one next time."""
        number, step, activity, first = _BEAT.unpack_from(memory)
        return cls(number, step, Activity(activity), first)


class Heartbeat:
    """Says what the training loop begins.

    Args:
        descriptor: Of the memory that the trainer looks at; None: nobody does.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, STACKS_OFFSET)
        self._number = 0
        self._step = 0
        self._activity = Activity.PREPARING
        self._done: set[Activity] = set()
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            # Written in the signal's handler itself, whatever holds the interpreter.
            faulthandler.register(STACKS_SIGNAL, file=descriptor, all_threads=True)

    def begin(self, activity: Activity) -> None:
        """The loop begins something; what it did before is done."""
        self._done.add(self._activity)
        self._activity = activity
        self._write()

    def stepped(self, step: int) -> None:
        """So many optimizer steps are done."""
        self._step = step
        self._write()

    def drawn(self, batches: Iterable[T], activity: Activity) -> Iterator[T]:
        """The batches, as they are; what is done with each is `activity`."""
        self.begin(Activity.LOADING)
        for batch in batches:
            self.begin(activity)
            yield batch
            del batch
            self.begin(Activity.LOADING)

    def _write(self) -> None:
        self._number += 1
        first = self._activity not in self._done
        _BEAT.pack_into(self._memory, 0, self._number, self._step, self._activity, first)
