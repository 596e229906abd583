"""Errors that say that there is no memory, whoever raised them."""

from __future__ import annotations

import errno
import re
from typing import Final

import torch

#: What a RuntimeError says then: the CUDA libraries; torch's allocator on the CPU, and C++.
_CUDA_TEXTS: Final = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_TEXTS: Final = (*_CUDA_TEXTS, "DefaultCPUAllocator: ", "std::bad_alloc")
#: What a DataLoader says whose worker is gone: its own child, or that of a fork server.
_LOST_WORKER: Final = re.compile(
    r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal: Killed|exited unexpectedly)"
)


def is_lost_worker(error: Exception) -> bool:
    """Whether a process that loads examples ended without a word, as the kernel ends one."""
    # The latter while its last tensors were fetched from it.
    if isinstance(error, ConnectionError | EOFError):
        return True
    return isinstance(error, RuntimeError) and _LOST_WORKER.search(str(error)) is not None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is for want of memory."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__
    return False


def memory_wanted(error: BaseException, device: str) -> str:
    """What an error for want of memory is said to be: a device's memory has its name."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    of_device = isinstance(error, torch.OutOfMemoryError) or any(
        name in str(error) for name in _CUDA_TEXTS
    )
    where, larger = (f" on {device}", "device") if of_device else ("", "machine")
    return (
        f"there is no memory for the training{where} ({text}); use a larger {larger}, a smaller "
        "batch, or fewer trainings at a time"
    )
