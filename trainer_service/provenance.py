"""What computes: the processor's model, and the code. Imports no torch: both sides ask it."""

from __future__ import annotations

import functools
import importlib.util
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3

#: What of this package decides the bytes of a training.
_TRAINING_CODE: Final = ("child", "strategies", "generators.py")
#: Differences that steps run again can disprove.
PROVABLE: Final = frozenset({"cpu_model", "everstep_code"})


@functools.cache
def cpu_model() -> str:
    """As in `Intel(R) Xeon(R) Platinum 8481C`; the architecture where it has no name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as information:
            for line in information:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.machine()
    return platform.machine()


def gpu_models(root: Path = Path("/")) -> list[str]:
    """NVIDIA's, as in `NVIDIA H100 80GB HBM3`, one of each; none without its driver.

    Read from the driver's own files: asking CUDA would start it in this process.

    Args:
        root: Where `proc` is.
    """
    models = set()
    for file in (root / "proc/driver/nvidia/gpus").glob("*/information"):
        with suppress(OSError):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.startswith("Model:"):
                    models.add(line.partition(":")[2].strip())
    return sorted(models)


@functools.cache
def everstep_code() -> str:
    """A digest of Everstep's own training code."""
    root = Path(__file__).parent
    return _digest(root, (root / name for name in _TRAINING_CODE))


@functools.cache
def own_code(packages: tuple[str, ...]) -> str:
    """A digest of every Python file of a team's packages, by their names; empty without any."""
    hasher = blake3()
    for package in sorted(packages):
        specification = importlib.util.find_spec(package)
        if specification is None or specification.origin is None:
            folders = list(specification.submodule_search_locations or ()) if specification else []
            roots = [Path(folder) for folder in folders]
        elif specification.submodule_search_locations:
            roots = [Path(specification.origin).parent]
        else:
            roots = [Path(specification.origin)]
        for root in roots:
            hasher.update(f"{package}:{_digest(root.parent, [root])}\n".encode())
    return hasher.hexdigest()[:32] if packages else ""


def proof_wanted(made_with: dict[str, str]) -> bool:
    """Whether a checkpoint was made where other bytes may come out, so that steps are run again."""
    here = {"cpu_model": cpu_model(), "everstep_code": everstep_code()}
    return any(made_with.get(name, value) != value for name, value in here.items())


def _digest(root: Path, parts: Iterable[Path]) -> str:
    hasher = blake3()
    files = {
        path
        for part in parts
        for path in ([part] if part.is_file() else part.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    for path in sorted(files):
        content = path.read_bytes()
        hasher.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.hexdigest()[:32]
