"""Trials of the promise for as long as asked: `python -m tests.soak --minutes 10`.

Each trial trains twice, once killed and resumed at random and once left alone, and compares every
byte. The last line counts: `trials N kills N mismatches 0`. Exit code 1 when one differed.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field

from everstep.errors import EverstepError
from tests.training.trials import describe, draw_trial, run_in_a_folder


@dataclass
class Counts:
    """What all workers have seen."""

    trials: int = 0
    kills: int = 0
    mismatches: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return f"trials {self.trials} kills {self.kills} mismatches {self.mismatches}"


def work(seed: int, number: int, workers: int, deadline: float, counts: Counts) -> None:
    """Runs every `workers`-th trial from `number` on, each from a seed of its own."""
    while time.monotonic() < deadline:
        trial = draw_trial(random.Random(f"{seed} {number}"))
        try:
            outcome = run_in_a_folder(trial)
            kills, fault = outcome.kills, ", ".join(outcome.differences)
        except (AssertionError, OSError, EverstepError) as error:
            kills, fault = 0, f"{type(error).__name__}: {error}"
        with counts.lock:
            counts.trials += 1
            counts.kills += kills
            if fault:
                counts.mismatches += 1
                print(f"\ntrial {number} of seed {seed}: {fault}\n  {describe(trial)}", flush=True)
            elif sys.stdout.isatty():
                print(f"\r{counts}", end="", flush=True)
            elif counts.trials % 10 == 0:
                print(counts, flush=True)
        number += workers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    # More data loading workers than cores are meant.
    os.environ["PYTHONWARNINGS"] = "ignore"
    # What killed processes and their loaders say at their end is of no use on the terminal.
    os.makedirs("build", exist_ok=True)
    with open("build/soak.log", "wb") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    print(f"seed {seed}, {arguments.minutes:g} minutes, {arguments.workers} at a time", flush=True)
    deadline = time.monotonic() + arguments.minutes * 60
    counts = Counts()
    workers = [
        threading.Thread(
            target=work,
            args=(seed, number, arguments.workers, deadline, counts),
            daemon=True,
        )
        for number in range(arguments.workers)
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
    print(f"\n{counts}" if sys.stdout.isatty() else counts, flush=True)
    return 1 if counts.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
