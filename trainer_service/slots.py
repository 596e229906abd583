"""Shared memory that holds a training's snapshots and outlives its process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from trainer_service.child.pipe import SLOTS, SlotContent


class MemorySlots:
    """Two pieces of memory, so that one complete snapshot stands while the next is written.

    The trainer makes them before it starts a training process and passes their descriptors on.
    `newest` is the last complete snapshot; a new training process goes on from it.
    """

    def __init__(self) -> None:
        self.descriptors = tuple(
            os.memfd_create(f"everstep-slot-{slot}", os.MFD_CLOEXEC) for slot in range(SLOTS)
        )
        self.newest: SlotContent | None = None

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def reserve(self, slot: int, size: int) -> None:
        """Makes a slot at least `size` bytes long."""
        if os.fstat(self.descriptors[slot]).st_size < size:
            os.ftruncate(self.descriptors[slot], size)

    @contextmanager
    def view(self, slot: int) -> Iterator[memoryview]:
        """The bytes of a slot, mapped for as long as the block runs."""
        size = os.fstat(self.descriptors[slot]).st_size
        if size == 0:
            yield memoryview(b"")
            return
        with mmap.mmap(self.descriptors[slot], size) as mapped, memoryview(mapped) as memory:
            yield memory
