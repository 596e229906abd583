"""Shared memory that holds a training's snapshots and outlives its process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from trainer_service.child.pipe import SLOTS, SlotContent
from trainer_service.shared_memory import allocate, extend, write


class MemorySlots:
    """Two pieces of memory, so that one complete snapshot stands while the next is written.

    The trainer makes them before it starts a training process and passes their descriptors on; a
    new process goes on from the newest complete snapshot.
    """

    def __init__(self) -> None:
        self.descriptors = tuple(
            os.memfd_create(f"everstep-slot-{slot}", os.MFD_CLOEXEC) for slot in range(SLOTS)
        )
        #: Complete snapshots by slot, the newest last.
        self._complete: dict[int, SlotContent] = {}
        self._mappings: dict[int, mmap.mmap] = {}

    @property
    def newest(self) -> SlotContent | None:
        """The newest complete snapshot."""
        return next(reversed(self._complete.values()), None)

    def begun(self, slot: int) -> None:
        """What a slot held is being written over."""
        self._complete.pop(slot, None)

    def completed(self, content: SlotContent) -> None:
        """A slot holds a complete snapshot, the newest one now."""
        self._complete.pop(content.slot, None)
        self._complete[content.slot] = content

    def close(self) -> None:
        """Gives the memory back, once nobody reads it any more."""
        self._mappings.clear()
        for descriptor in self.descriptors:
            os.close(descriptor)

    def reserve(self, length: int) -> None:
        """Makes both slots at least `length` bytes long, with memory behind them.

        Raises:
            EverstepError: OUT_OF_MEMORY.
        """
        for descriptor in self.descriptors:
            allocate(descriptor, length)

    def extend(self, slot: int, length: int) -> None:
        """Makes one slot at least `length` bytes long; its memory comes as it is written.

        Raises:
            EverstepError: OUT_OF_MEMORY.
        """
        extend(self.descriptors[slot], length)

    def write(self, slot: int, offset: int, content: memoryview) -> None:
        """Puts bytes into a slot.

        Raises:
            EverstepError: OUT_OF_MEMORY.
        """
        write(self.descriptors[slot], offset, content)

    @contextmanager
    def view(self, slot: int) -> Iterator[memoryview]:
        """The bytes of a slot, for as long as the block runs.

        A slot is mapped once; again only after the process has made it longer.
        """
        size = os.fstat(self.descriptors[slot]).st_size
        if size == 0:
            yield memoryview(b"")
            return
        mapping = self._mappings.get(slot)
        if mapping is None or len(mapping) != size:
            mapping = self._mappings[slot] = mmap.mmap(self.descriptors[slot], size)
        with memoryview(mapping) as memory:
            yield memory
