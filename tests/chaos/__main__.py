"""Faults for as long as asked, and the promises checked: `python -m tests.chaos --minutes 10`.

Each trial has a seed: it draws trainings, a cluster, and faults that come after so many events.
`--seed N` replays one. When a promise is broken, and when a trial is replayed, all that happened is
printed, and the logs stay in build/chaos/seed-N. The last line counts: `faults N violations 0`.
Exit code 1 when one was broken.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.checks import PROMISES
from tests.chaos.faults import KINDS
from tests.chaos.plan import STRATEGIES, draw_plan
from tests.chaos.reference import uninterrupted
from tests.chaos.trial import Report, Trial

FOLDER = Path("build/chaos")


def run_trials(seeds: Iterator[int], told: bool) -> list[Report]:
    """A trial for each seed; says how each went, and (told) all that happened in it."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    wanted = uninterrupted(STRATEGIES, FOLDER / "uninterrupted")
    reports = []
    for seed in seeds:
        folder = FOLDER.resolve() / f"seed-{seed}"
        folder.mkdir(parents=True)
        trial = Trial(draw_plan(seed), folder, wanted)
        try:
            report = trial.run()
        except BaseException:
            print("\n".join(trial.report.timeline), f"\nthe trial itself failed: see {folder}")
            raise
        reports.append(report)
        violations = sum(map(len, report.violations.values()))
        print(
            f"seed {seed}: {len(report.plan.operations)} operations, "
            f"{report.faults.total()} faults, {violations} violations",
            flush=True,
        )
        if violations or told:
            print("\n".join(report.timeline), f"\nlogs: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    return reports


def print_table(reports: list[Report]) -> int:
    """What was done and what was checked; the number of violations."""
    console = Console()
    faults = sum((report.faults for report in reports), Counter[str]())
    done = Table("fault", "injected", box=None)
    for kind in KINDS:
        done.add_row(kind.kind, str(faults[kind.kind]))
    console.print(done)
    checked = Table("promise", "operations checked", "violations", box=None)
    operations = sum(len(report.plan.operations) for report in reports)
    violations = 0
    for promise in PROMISES:
        broken = sum(len(report.violations[promise]) for report in reports)
        violations += broken
        checked.add_row(promise, str(operations), str(broken))
    console.print(checked)
    print("seeds", *(report.plan.seed for report in reports))
    print(f"faults {faults.total()} violations {violations}")
    return violations


def seeds_until(deadline: float) -> Iterator[int]:
    """Seeds at random, as long as there is time."""
    while time.monotonic() < deadline:
        yield secrets.randbelow(10**6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, action="append", help="replay this trial alone")
    arguments = parser.parse_args()
    # The services run in sessions of their own: who is told to stop stops them first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seeds = arguments.seed or seeds_until(time.monotonic() + arguments.minutes * 60)
    return 1 if print_table(run_trials(iter(seeds), told=bool(arguments.seed))) else 0


if __name__ == "__main__":
    sys.exit(main())
