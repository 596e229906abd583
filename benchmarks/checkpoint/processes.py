"""Runs of the benchmark as processes, with the memory and the processor time that they take."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import psutil

from trainer_service.child_process import TRAINING_ENVIRONMENT

_SAMPLE_SECONDS: Final = 0.1
#: The most that a run may take.
_PATIENCE_SECONDS: Final = 900


def run_process(
    module: str, asked: dict[str, Any], environment: Mapping[str, str] = TRAINING_ENVIRONMENT
) -> dict[str, Any]:
    """The result of `python -m MODULE JSON`, with `peak_tree_bytes` and `cpu_seconds` beside it.

    Memory is that of the process and all below it, shared pages counted once, and what they keep
    in /dev/shm.

    Args:
        environment: As the product starts its training process: what is good for Everstep is for
            everyone.

    Raises:
        RuntimeError: When the run failed.
    """
    before = _processor_seconds()
    process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **os.environ},
    )
    sampler = _Sampler(process.pid)
    try:
        output, errors = process.communicate(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{asked}: it hangs") from None
    finally:
        if process.poll() is None:
            _kill(process)
        peak_bytes = sampler.stop()
    if process.returncode != 0:
        raise RuntimeError(f"{asked}: {errors[-2000:]}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result | {
        "peak_tree_bytes": peak_bytes,
        "cpu_seconds": _processor_seconds() - before,
    }


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.wait()


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Sampler:
    def __init__(self, process_id: int) -> None:
        self._process = psutil.Process(process_id)
        self._shared_before = shutil.disk_usage("/dev/shm").used
        self._peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The most that was seen, in bytes."""
        self._stopped.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            shared = shutil.disk_usage("/dev/shm").used - self._shared_before
            total = shared
            with suppress(psutil.Error):
                for process in (self._process, *self._process.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
                        if shared:
                            total -= _mapped_from_shared_memory(process)
            self._peak = max(self._peak, total)


def _mapped_from_shared_memory(process: psutil.Process) -> int:
    """Bytes of files in /dev/shm that a process has mapped: they are counted there."""
    maps = process.memory_maps()
    return sum(one.pss for one in maps if one.path.startswith("/dev/shm/"))
