"""Memory for snapshots: asked for before it is needed, and refused in time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from everstep.errors import EverstepError, Reason
from trainer_service.cgroups import own_cgroups


def allocate(descriptor: int, length: int) -> None:
    """Makes an anonymous file at least `length` bytes long, with memory behind all of it.

    Raises:
        EverstepError: OUT_OF_MEMORY, before the system has to kill anything for it.
    """
    if _grows(descriptor, length):
        try:
            os.posix_fallocate(descriptor, 0, length)
        except OSError as error:
            raise _no_memory(length, error.strerror or str(error)) from None


def extend(descriptor: int, length: int) -> None:
    """Makes an anonymous file at least `length` bytes long, to be filled by `write`.

    Raises:
        EverstepError: OUT_OF_MEMORY, where so much is not free now.
    """
    if _grows(descriptor, length):
        os.ftruncate(descriptor, length)


def write(descriptor: int, offset: int, content: memoryview) -> None:
    """Puts bytes into an anonymous file.

    Raises:
        EverstepError: OUT_OF_MEMORY.
    """
    position = 0
    try:
        while position < len(content):
            with content[position:] as rest:
                position += os.pwrite(descriptor, rest, offset + position)
    except OSError as error:
        raise _no_memory(offset + len(content), error.strerror or str(error)) from None


def _grows(descriptor: int, length: int) -> bool:
    """Whether a file has to be made longer; what that takes is seen to be free."""
    size = os.fstat(descriptor).st_size
    if length <= size:
        return False
    available = available_bytes()
    if available is not None and length - size > available:
        raise _no_memory(length, f"{available / 1e9:.1f} GB are free")
    return True


def available_bytes() -> int | None:
    """What this process may still take, by the machine's memory and its own cgroup's limit."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    for folder in own_cgroups():
        found += _left_in(folder)
    return min(found, default=None)


def _left_in(group: Path) -> list[int]:
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [limit - used + int(statistics.get("inactive_file", 0))]
    return []


def _no_memory(length: int, detail: str) -> EverstepError:
    return EverstepError(
        Reason.OUT_OF_MEMORY,
        f"there is no memory for a snapshot of {length / 1e9:.1f} GB ({detail}); a training needs "
        "its own memory and two snapshots: use a larger machine, or fewer trainings at a time",
    )
