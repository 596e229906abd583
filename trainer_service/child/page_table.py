"""Pages of a mapping, entered into this process's page table before they are first written."""

from __future__ import annotations

import ctypes
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

#: Linux 5.14; Python has no name for it.
_MADV_POPULATE_WRITE: Final = 23
#: Entered by one call: threads share what there is, and each call is short.
_PIECE_BYTES: Final = 64 * 1024 * 1024

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def populate(mapping: mmap.mmap, threads: int) -> None:
    """Enters all pages of a writable mapping; each that is not there yet is made.

    `mmap.madvise` would hold the interpreter meanwhile, and the other threads with it.

    Raises:
        OSError: When the kernel refuses; an older one knows no such call.
    """
    anchor = ctypes.c_char.from_buffer(mapping)
    address, length = ctypes.addressof(anchor), len(mapping)

    def enter(begin: int) -> None:
        piece = min(_PIECE_BYTES, length - begin)
        if _libc.madvise(address + begin, piece, _MADV_POPULATE_WRITE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(enter, range(0, length, _PIECE_BYTES)))
