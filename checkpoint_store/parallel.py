"""A few blocking calls at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    parallelism: int, items: Iterable[Item], call: Callable[[Item], Result]
) -> list[Result]:
    """The results in the items' order; after a failure no further item is begun."""
    with ThreadPoolExecutor(parallelism) as executor:
        futures = [executor.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
