"""`python -m benchmarks.progress`: everything, in turn, several times; tables, a plot, one line.

Every run has processes of its own: a control plane, a trainer, those who watch. Everstep and the
bare stream take turns, and the order is turned round every other time. The results of every run are
kept as JSON lines. Ends with 1 when a run fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.progress import runs
from benchmarks.progress.filled_log import FilledLog, fill
from benchmarks.progress.report import BARE, BATCHED, DISK, EVERSTEP, MEMORY, write_report

SECTIONS: Final = ("delivery", "latency", "replay", "append", "idle")
#: Watchers, and the events of one run.
DELIVERIES: Final = {1: 30_000, 100: 2_000, 1_000: 200}
LATENCY_WATCHERS: Final = 100
LATENCY_EVENTS_PER_SECOND: Final = 20.0
LATENCY_SECONDS: Final = 20
REPLAYED: Final = 1_000_000
#: The bare stream holds its messages in memory.
REPLAYED_BARE: Final = 200_000
#: Events in a transaction, and events of one run.
APPENDS: Final = {1: 2_000, 256: 50_000}
IDLE_WATCHERS: Final = 1_000

Run = Callable[[Path], dict[str, Any]]


class Benchmark:
    """Runs, and keeps what came out.

    Args:
        results: A file of JSON lines, which is added to.
        rounds: How often each is run.
    """

    def __init__(self, results: Path, rounds: int) -> None:
        self._results = results
        self._rounds = rounds
        self._began = time.monotonic()
        self._in_message: list[float] = []

    def deliver(self) -> None:
        """One training to 1, 100 and 1,000 watchers."""
        for watchers, events in DELIVERIES.items():
            for number in range(self._rounds):
                found = self._run(
                    "delivery", EVERSTEP, number, partial(_deliver, watchers, events), watchers
                )
                batch = max(1, round(found["events_in_message"]))
                for name, size in _in_turn(((BARE, 1), (BATCHED, batch)), number):
                    run = partial(_deliver_bare, watchers, events, size)
                    self._run("delivery", name, number, run, watchers)

    def follow(self) -> None:
        """From a training's step to a hundred screens."""
        for number in range(self._rounds):
            for name, run in _in_turn(((EVERSTEP, _follow), (BARE, _follow_bare)), number):
                self._run("latency", name, number, run, LATENCY_WATCHERS)

    def replay(self, folder: Path) -> None:
        """A log of a million events."""
        database = folder / "filled.db"
        self._say(f"a log of {REPLAYED:,} events is written ...")
        log = asyncio.run(fill(database, REPLAYED))
        for number in range(self._rounds):
            found = self._run("replay", EVERSTEP, number, partial(_replay, database, log), 1)
            batch = max(1, round(found["events_in_message"]))
            self._run("replay", BATCHED, number, partial(_replay_bare, batch), 1)
        database.unlink()

    def append(self) -> None:
        """Events stored on a disk, and in memory alone."""
        for batch, events in APPENDS.items():
            for number in range(self._rounds):
                for name, run in _in_turn(
                    (
                        (DISK, partial(_append, events, batch)),
                        (MEMORY, partial(_append_in_memory, events, batch)),
                    ),
                    number,
                ):
                    self._run("append", name, number, run, batch)

    def idle(self) -> None:
        """What those cost who wait."""
        for number in range(self._rounds):
            for name, run in _in_turn(((EVERSTEP, _idle), (BARE, _idle_bare)), number):
                self._run("idle", name, number, run, IDLE_WATCHERS)

    def _run(
        self, section: str, contender: str, number: int, run: Run, size: int
    ) -> dict[str, Any]:
        label = f"{section:<9} {contender:<30} {size:>6,}"
        # Everyone works on this machine's cores, and so does whatever else it does meanwhile.
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            found = run(Path(folder))
        shown = "  ".join(f"{name} {value:,.4g}" for name, value in found.items())
        self._say(f"{label}  {shown}")
        line = {"section": section, "contender": contender, "size": size, "round": number}
        with self._results.open("a") as file:
            file.write(json.dumps({**line, "load": load, **found}) + "\n")
        return found

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)


def _deliver(watchers: int, events: int, folder: Path) -> dict[str, Any]:
    with runs.everstep(folder, events, 0) as source:
        return runs.deliver(source, folder, watchers, events)


def _deliver_bare(watchers: int, events: int, batch: int, folder: Path) -> dict[str, Any]:
    with runs.bare(folder, events, 0, batch) as source:
        return runs.deliver(source, folder, watchers, events)


def _follow(folder: Path) -> dict[str, Any]:
    events = int(LATENCY_EVENTS_PER_SECOND * LATENCY_SECONDS)
    with runs.everstep(folder, events, LATENCY_EVENTS_PER_SECOND) as source:
        return runs.follow(source, folder, LATENCY_WATCHERS, events)


def _follow_bare(folder: Path) -> dict[str, Any]:
    events = int(LATENCY_EVENTS_PER_SECOND * LATENCY_SECONDS)
    with runs.bare(folder, events, LATENCY_EVENTS_PER_SECOND, 1) as source:
        return runs.follow(source, folder, LATENCY_WATCHERS, events)


def _replay(database: Path, log: FilledLog, folder: Path) -> dict[str, Any]:
    return runs.replay(folder, database, log)


def _replay_bare(batch: int, folder: Path) -> dict[str, Any]:
    return runs.replay_bare(folder, REPLAYED_BARE, batch)


def _append(events: int, batch: int, folder: Path) -> dict[str, Any]:
    return runs.append(folder, events, batch)


def _append_in_memory(events: int, batch: int, _folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        return runs.append(Path(folder), events, batch)


def _idle(folder: Path) -> dict[str, Any]:
    with runs.everstep(folder, 1, 0) as source:
        return runs.idle(source, folder, IDLE_WATCHERS)


def _idle_bare(folder: Path) -> dict[str, Any]:
    with runs.bare(folder, 1, 0, 1) as source:
        return runs.idle(source, folder, IDLE_WATCHERS)


def _in_turn(contenders: Sequence[tuple[str, Any]], number: int) -> Sequence[tuple[str, Any]]:
    """Forth and back, so that what the machine does meanwhile hits none more than others."""
    return contenders if number % 2 == 0 else tuple(reversed(contenders))


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.progress", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--results", type=Path, default=Path("build/bench-progress.jsonl"))
    parser.add_argument("--report", type=Path, default=Path("build/bench-progress"))
    parser.add_argument("--only-report", action="store_true", help="of the results that are there")
    asked = parser.parse_args()
    if not asked.only_report:
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        asked.results.unlink(missing_ok=True)
        try:
            _run_all(asked)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(write_report(asked.results, asked.report))
    return 0


def _run_all(asked: argparse.Namespace) -> None:
    benchmark = Benchmark(asked.results, asked.rounds)
    if "delivery" in asked.sections:
        benchmark.deliver()
    if "latency" in asked.sections:
        benchmark.follow()
    if "replay" in asked.sections:
        with tempfile.TemporaryDirectory() as folder:
            benchmark.replay(Path(folder))
    if "append" in asked.sections:
        benchmark.append()
    if "idle" in asked.sections:
        benchmark.idle()


if __name__ == "__main__":
    sys.exit(main())
