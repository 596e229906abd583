"""The control groups that this process is in, and what they count."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def own_cgroups(root: Path = Path("/"), controller: str = "") -> list[Path]:
    """Folders of this process's control group and its parents, the nearest first.

    Args:
        root: Where `proc` and `sys` are.
        controller: Of version 1, as in `memory`; empty for version 2, which has one tree.
    """
    top = root / "sys/fs/cgroup" / controller
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, _, rest = line.partition(":")
            controllers, _, group = rest.partition(":")
            if controller in controllers.split(","):
                own = top / group.lstrip("/")
                return [own, *(folder for folder in own.parents if folder.is_relative_to(top))]
    return []


def memory_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has ended for want of memory.

    Counted in this process's control group, where there is one that counts; otherwise on the whole
    machine. The kernel counts before it kills.
    """
    files = [folder / "memory.events" for folder in own_cgroups(root)]
    files += [folder / "memory.oom_control" for folder in own_cgroups(root, "memory")]
    for file in (*files, root / "proc/vmstat"):
        with suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
