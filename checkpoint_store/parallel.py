"""A few blocking calls at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    parallelism: int, items: Iterable[Item], call: Callable[[Item], Result], niceness: int = 0
) -> list[Result]:
    """The results in the items' order; after a failure no further item is begun.

    Args:
        parallelism: Threads.
        items: What is called with.
        call: Called for each item.
        niceness: Of the threads; 0: as whoever calls.
    """
    begin = partial(_give_way, niceness) if niceness else None
    with ThreadPoolExecutor(parallelism, initializer=begin) as executor:
        futures = [executor.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _give_way(niceness: int) -> None:
    """This thread's share of the processor shrinks; Linux keeps that for each thread."""
    thread = threading.get_native_id()
    now = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, max(now, niceness))
