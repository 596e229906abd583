"""Snapshots: when which slot is written, and which one goes on its way to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainer_service.child.devices import CPU, Device
from trainer_service.child.pipe import (
    MEMORY,
    ChildPipe,
    SlotContent,
    SlotsWanted,
    SnapshotBegun,
    SnapshotHandedOver,
    SnapshotTaken,
    Train,
)
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.snapshot_memory import SnapshotMemory

#: The step of a checkpoint that fell due and was replaced, and the step of what replaces it.
Delayed = Callable[[int, int], None]


class Snapshots:
    """A training's snapshots, in two slots.

    One slot at most is on its way to the store, and complete; then the other one is written, again
    and again. Without one on its way it is the older one that is written. So there is always a
    complete one for a new process to go on from.

    A snapshot that is to become a checkpoint while another is on its way waits. The next one, of
    whatever trigger, takes its place and its claim.

    Args:
        pipe: Where the trainer is told.
        train: What the slots hold already.
        descriptors: Of the slots.
        describe: The fields of `SnapshotTaken` that this class does not know.
        delayed: Called when a checkpoint that fell due is replaced before it was handed over.
        device: Where the state is.
    """

    def __init__(
        self,
        pipe: ChildPipe,
        train: Train,
        descriptors: tuple[int, ...],
        describe: Callable[[TrainingResumeContext], Mapping[str, Any]],
        delayed: Delayed,
        device: Device = CPU,
    ) -> None:
        self._pipe = pipe
        self._describe = describe
        self._delayed = delayed
        self._memory = SnapshotMemory(descriptors, device)
        self._length = 0
        self._ready = threading.Event()
        #: Guards what follows: the thread that hears the trainer releases slots.
        self._changing = threading.Lock()
        self._held = set(train.held)
        #: The newest complete one.
        self.newest = train.resume
        #: The trigger of the newest, where it waits, and the step that it fell due at, unless that
        #: one was reported as replaced.
        self._waiting = train.waiting
        self._due_step = None if train.resume is None else int(train.resume.state["step"])

    def prepare(self, length: int, changing: int) -> None:
        """Waits until there are slots of that length, and maps them."""
        if length <= self._length:
            return
        self._ready.clear()
        self._pipe.send(SlotsWanted(length, changing))
        self._ready.wait()
        self._memory.map(length)
        self._length = length

    def ready(self) -> None:
        """The trainer has made the slots."""
        self._ready.set()

    def released(self, slot: int) -> None:
        """The trainer no longer reads a slot; what waited goes on its way."""
        with self._changing:
            self._held.discard(slot)
            if self._waiting and not self._held and self.newest is not None:
                self._held.add(self.newest.slot)
                self._waiting = ""
                self._pipe.send(SnapshotHandedOver(self.newest.slot))

    def take(self, trigger: str, capture: Callable[[], TrainingResumeContext]) -> None:
        """Takes a snapshot, and hands it over unless another one is on its way."""
        began = time.monotonic()
        context = capture()
        slot, trigger = self._begin(trigger, context.step)
        blobs = self._memory.write(slot, context.tensor_groups())
        content = SlotContent(slot, blobs, context.small_state())
        described = self._describe(context)
        with self._changing:
            self.newest = content
            handed_over = trigger != MEMORY and not self._held
            if handed_over:
                self._held.add(slot)
            elif trigger != MEMORY:
                self._waiting = trigger
            self._pipe.send(
                SnapshotTaken(
                    content=content,
                    trigger=trigger,
                    handed_over=handed_over,
                    stall_seconds=time.monotonic() - began,
                    **described,
                )
            )

    def read(self, content: SlotContent) -> Mapping[str, Mapping[str, Any]]:
        """A snapshot's tensors by kind and name, as views of the slot."""
        return self._memory.read(content)

    def close(self) -> None:
        """After the last snapshot."""
        self._memory.close()

    def _begin(self, trigger: str, step: int) -> tuple[int, str]:
        """The slot to write, told to the trainer, and the trigger that the snapshot has then."""
        replaced: int | None = None
        with self._changing:
            slot = self._slot_to_write()
            if self._waiting:
                replaced = self._due_step
                self._due_step = step if trigger != MEMORY else None
                trigger, self._waiting = _claim(self._waiting, trigger), ""
            elif trigger != MEMORY:
                self._due_step = step
            self._pipe.send(SnapshotBegun(slot))
        if replaced is not None:
            self._delayed(replaced, step)
        return slot, trigger

    def _slot_to_write(self) -> int:
        free = [slot for slot in (0, 1) if slot not in self._held]
        if self.newest is not None and len(free) > 1:
            free.remove(self.newest.slot)
        return free[0]


def _claim(waiting: str, trigger: str) -> str:
    """The trigger of a snapshot that takes another one's place: what was asked for is kept."""
    if trigger == MEMORY or (trigger == "PERIODIC" and waiting == "REQUESTED"):
        return waiting
    return trigger
