"""Schedules on a simulated clock, and the promises checked: `python -m tests.simulation`.

`--minutes M` runs as many as there is time for, `--count N` so many, from `--first` on. `--seed N`
runs one and tells all that happened in it. A schedule that breaks a promise is told, with its seed.
The last line counts: `schedules N violations 0`. Exit code 1 when one was broken.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.simulation.checks import PROMISES
from tests.simulation.faults import KINDS
from tests.simulation.running import fix_hashes, run_all
from tests.simulation.schedule import Report, run_schedule


def seeds_until(deadline: float, first: int) -> Iterator[int]:
    """One seed after another, as long as there is time."""
    seed = first
    while time.monotonic() < deadline:
        yield seed
        seed += 1


def run(seeds: Iterator[int], processes: int) -> int:
    """Runs schedules and prints what came out; the number of violations."""
    faults: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    began, simulated, count = time.monotonic(), 0.0, 0
    for report in run_all(seeds, processes):
        count += 1
        simulated += report.seconds
        faults.update(step.fault.kind for step in report.plan.steps)
        for promise, violations in report.violations.items():
            broken[promise] += len(violations)
        if report.broken:
            print(f"seed {report.plan.seed}:")
            print("\n".join(report.story), flush=True)
    seconds = time.monotonic() - began
    console = Console()
    done = Table("fault", "injected", box=None)
    for kind in KINDS:
        done.add_row(kind.kind, str(faults[kind.kind]))
    console.print(done)
    checked = Table("promise", "violations", box=None)
    for promise in PROMISES:
        checked.add_row(promise, str(broken[promise]))
    console.print(checked)
    print(f"{count / seconds * 60:.0f} schedules a minute, {simulated / 3600:.1f} hours simulated")
    print(f"schedules {count} violations {broken.total()}")
    return broken.total()


def tell(report: Report) -> int:
    """Prints all that happened in a schedule; the number of violations."""
    print("\n".join(report.story))
    print(f"trace {report.trace}")
    print(f"schedules 1 violations {len(report.broken)}")
    return len(report.broken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--count", type=int, help="run so many, however long it takes")
    parser.add_argument("--first", type=int, default=None, help="seed of the first; else drawn")
    parser.add_argument("--seed", type=int, help="run this one alone, and tell it")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    fix_hashes()
    if arguments.seed is not None:
        return 1 if tell(run_schedule(arguments.seed)) else 0
    first = secrets.randbelow(10**9) if arguments.first is None else arguments.first
    if arguments.count is not None:
        seeds = iter(range(first, first + arguments.count))
    else:
        seeds = seeds_until(time.monotonic() + arguments.minutes * 60, first)
    return 1 if run(seeds, arguments.processes) else 0


if __name__ == "__main__":
    sys.exit(main())
