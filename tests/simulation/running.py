"""Many schedules, in processes side by side; the same seed does the same in each of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from typing import Final

from tests.simulation.schedule import Report, run_schedule

#: Python draws the order of sets of texts from this; it has to be the same each time.
HASH_SEED: Final = "0"
#: Schedules given to a process at a time.
_AT_A_TIME: Final = 5


def has_fixed_hashes() -> bool:
    """Whether sets of texts have the same order in every process."""
    return os.environ.get("PYTHONHASHSEED") == HASH_SEED


def fix_hashes() -> None:
    """Begins this program again, unless sets of texts have their order already."""
    if not has_fixed_hashes():
        environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def run_all(seeds: Iterable[int], processes: int) -> Iterator[Report]:
    """The report of each seed, as they come."""
    before = os.environ.get("PYTHONHASHSEED")
    # Of the processes that are started: they read it at their start.
    os.environ["PYTHONHASHSEED"] = HASH_SEED
    try:
        yield from _run_all(iter(seeds), processes)
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


def _run_all(seeds: Iterator[int], processes: int) -> Iterator[Report]:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: set[Future[list[Report]]] = set()
        while True:
            while len(running) < 2 * processes and (some := list(islice(seeds, _AT_A_TIME))):
                running.add(pool.submit(_run_some, some))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()


def _run_some(seeds: list[int]) -> list[Report]:
    return [run_schedule(seed) for seed in seeds]
