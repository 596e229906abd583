"""Memory for snapshots: asked for before it is needed, and refused in time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from everstep.errors import EverstepError, Reason
from trainer_service.cgroups import own_cgroups

#: How long the files get that memory comes to just now, by descriptor; what is not there yet is
#: free no more.
_growing: dict[int, int] = {}
_reserving = threading.Lock()


def allocate(descriptor: int, length: int) -> None:
    """Makes an anonymous file at least `length` bytes long, with memory behind all of it.

    Raises:
        EverstepError: OUT_OF_MEMORY, before the system has to kill anything for it.
    """
    if os.fstat(descriptor).st_size >= length and not _missing(descriptor, length):
        return
    with _reserved(descriptor, length) as file:
        try:
            os.posix_fallocate(file, 0, length)
        except OSError as error:
            raise _no_memory(length, error.strerror or str(error)) from None


@contextmanager
def extended(descriptor: int, length: int) -> Iterator[None]:
    """Makes an anonymous file at least `length` bytes long, filled by `write` in the block.

    Until the block ends, what is not written yet counts as taken for everyone in this process.

    Raises:
        EverstepError: OUT_OF_MEMORY, where so much is not free now.
    """
    with _reserved(descriptor, length) as file:
        if os.fstat(file).st_size < length:
            os.ftruncate(file, length)
        yield


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


@contextmanager
def _reserved(descriptor: int, length: int) -> Iterator[int]:
    """Sees that a file's memory is free, beside what others wait for, and waits for it as well.

    Yields:
        A descriptor of its own: the file may be closed meanwhile, and its number be another's.
    """
    file = os.dup(descriptor)
    try:
        with _reserving:
            # Before the look at what is free: bytes that come meanwhile count twice, and never not.
            promised = sum(_missing(*growing) for growing in _growing.items())
            wanted = _missing(file, length)
            available = available_bytes()
            if wanted and available is not None and wanted > available - promised:
                raise _no_memory(length, f"{max(available - promised, 0) / 1e9:.1f} GB are free")
            _growing[file] = length
        try:
            yield file
        finally:
            with _reserving:
                del _growing[file]
    finally:
        os.close(file)


def _missing(descriptor: int, length: int) -> int:
    """Bytes that an anonymous file of that length has no memory for yet."""
    return max(0, length - os.fstat(descriptor).st_blocks * 512)


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
