"""Errors that say that there is no memory, whoever raised them."""

from __future__ import annotations

import errno
import re
from typing import Final

import torch

#: What a RuntimeError says then: torch's allocator on the CPU, C++, and the CUDA libraries.
_TEXTS: Final = (
    "DefaultCPUAllocator: ",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
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
