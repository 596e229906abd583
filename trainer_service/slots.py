"""Shared memory that holds a training's snapshots and outlives its process."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from trainer_service.child.pipe import SLOTS, SlotContent
from trainer_service.shared_memory import allocate, extended, write

#: Puts bytes to a place in a slot.
Write: TypeAlias = Callable[[int, memoryview], None]


class MemorySlots:
    """Two pieces of memory, so that one complete snapshot stands while the next is written.

    The trainer makes them before it starts a training process and passes their descriptors on; a
    new process goes on from the newest complete snapshot.
    """

    def __init__(self) -> None:
        self.descriptors: tuple[int, ...] = tuple(
            os.memfd_create(f"everstep-slot-{slot}", os.MFD_CLOEXEC) for slot in range(SLOTS)
        )
        #: Complete snapshots by slot, the newest last.
        self._complete: dict[int, SlotContent] = {}
        self._mappings: dict[int, mmap.mmap] = {}
        #: A thread may begin to read a slot while another one closes them.
        self._closing = threading.Lock()

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
        with self._closing:
            descriptors, self.descriptors = self.descriptors, ()
            self._mappings.clear()
        for descriptor in descriptors:
            os.close(descriptor)

    def reserve(self, length: int) -> None:
        """Makes both slots at least `length` bytes long, with memory behind them.

        Raises:
            EverstepError: OUT_OF_MEMORY.
        """
        for descriptor in self.descriptors:
            allocate(descriptor, length)

    @contextmanager
    def filling(self, slot: int, length: int) -> Iterator[tuple[memoryview, Write]]:
        """A slot made at least `length` bytes long: its bytes, and what writes them.

        Its memory comes as it is written. Whoever writes may outlive `close`.

        Raises:
            EverstepError: OUT_OF_MEMORY.
        """
        with self._closing:
            # Of its own: what has the slot's number after `close` is another file.
            descriptor = os.dup(self.descriptors[slot])
        try:
            with extended(descriptor, length), self.view(slot) as memory:
                yield memory, partial(write, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def view(self, slot: int) -> Iterator[memoryview]:
        """The bytes of a slot, for as long as the block runs.

        A slot is mapped once; again only after the process has made it longer.
        """
        with self._closing:
            memory = memoryview(self._mapped(slot))
        with memory:
            yield memory

    def _mapped(self, slot: int) -> mmap.mmap | bytes:
        descriptor = self.descriptors[slot]
        size = os.fstat(descriptor).st_size
        if size == 0:
            return b""
        mapping = self._mappings.get(slot)
        if mapping is None or len(mapping) != size:
            mapping = self._mappings[slot] = mmap.mmap(descriptor, size)
        return mapping
