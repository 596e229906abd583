"""Makes a process believe that it runs on another processor: on PYTHONPATH of a trainer."""

from __future__ import annotations

import builtins
import io
from typing import Any

_open = builtins.open


def _open_elsewhere(file: Any, *arguments: Any, **options: Any) -> Any:
    if file == "/proc/cpuinfo":
        return io.StringIO("model name\t: Another Processor 9000\n")
    return _open(file, *arguments, **options)


builtins.open = _open_elsewhere
