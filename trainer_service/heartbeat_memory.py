"""A training process's heartbeat, and its stacks, as its trainer sees them."""

from __future__ import annotations

import asyncio
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer_service.child.heartbeat import STACKS_OFFSET, Beat

#: Characters of stacks that are kept, and bytes that a process has room for.
MAX_STACKS: Final = 16 * 1024
STACKS_BYTES: Final = 256 * 1024
#: Seconds that a process has to write its stacks, and between two looks whether it has.
STACKS_SECONDS: Final = 3.0
LOOK_SECONDS: Final = 0.1
_CURRENT: Final = "Current thread"


class HeartbeatMemory:
    """The memory of one process: its heartbeat, and behind that what it writes when asked."""

    def __init__(self) -> None:
        length = STACKS_OFFSET + STACKS_BYTES
        #: For the process; whoever starts it closes this one then.
        self.descriptor = os.memfd_create("everstep-heartbeat", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, length)
        # The process writes its stacks where the descriptor stands.
        os.lseek(self.descriptor, STACKS_OFFSET, os.SEEK_SET)
        self._memory = mmap.mmap(self.descriptor, length, prot=mmap.PROT_READ)
        self._last = Beat()

    @property
    def beat(self) -> Beat:
        """What the process does now, or did last."""
        if not self._memory.closed:
            self._last = Beat.read(self._memory)
        return self._last

    def close(self) -> None:
        """Gives the memory back: the process is gone. Its last heartbeat stays."""
        self._last = self.beat
        self._memory.close()

    async def stacks(self, process_id: int) -> str:
        """Where each thread of a process is that was just asked, the one that trains first.

        The process writes it in a signal's handler: it need not come out of what it is in. One that
        is stopped, or deep in the kernel, does not; then its state is said.
        """
        written = b""
        for _ in range(round(STACKS_SECONDS / LOOK_SECONDS)):
            await asyncio.sleep(LOOK_SECONDS)
            if self._memory.closed:
                break
            before, written = written, self._memory[STACKS_OFFSET:].rstrip(b"\0")
            if written and written == before:
                break
        if not written:
            return f"the process does not say where it is; it is {_kernel_state(process_id)}"
        return ordered_stacks(written.decode(errors="replace"))


def ordered_stacks(dump: str) -> str:
    """faulthandler's stacks with the current thread's first, so that a cut leaves it."""
    threads = [thread for thread in dump.strip().split("\n\n") if thread]
    threads.sort(key=lambda thread: not thread.startswith(_CURRENT))
    text = "\n\n".join(threads)
    if len(text) > MAX_STACKS:
        text = f"{text[:MAX_STACKS]}\n..."
    return text


def _kernel_state(process_id: int) -> str:
    """As the kernel has it, as in `T (stopped)`."""
    with suppress(OSError):
        for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
            name, _, state = line.partition(":")
            if name == "State":
                return state.strip()
    return "gone"
