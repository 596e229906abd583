"""`python -m benchmarks.checkpoint`: everything, in turn, several times; a table and a plot.

Each run is a process of its own, against one server; the order is turned round every other time.
The results of every run are kept as JSON lines. Ends with 1 when a run of Everstep fails; a peer
that fails is said to have failed, and left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.checkpoint.job import JOBS, SIZES
from benchmarks.checkpoint.one_run import COPY, EVERSTEP, RECOVERY
from benchmarks.checkpoint.peers import PEERS, Nothing
from benchmarks.checkpoint.processes import run_process
from benchmarks.checkpoint.report import write_report
from benchmarks.checkpoint.restores import WAYS
from benchmarks.checkpoint.server import ACCESS_KEY, SECRET_KEY, Server, running_sink
from benchmarks.checkpoint.uploads import RAW
from everstep.object_store_process import MinioProcess
from trainer_service.child_process import TRAINING_ENVIRONMENT

PACKAGE: Final = "benchmarks.checkpoint"
THREADS: Final = 2
SECTIONS: Final = ("training", "client", "upload", "restore", "recovery")


class Benchmark:
    """Runs, and keeps what came out.

    Args:
        server: The object store, empty.
        results: A file of JSON lines, which is added to.
    """

    def __init__(self, server: Server, results: Path) -> None:
        self._server = server
        self._results = results
        self._began = time.monotonic()

    def train(
        self, size: str, job: str, contenders: Sequence[str], rounds: int, section: str
    ) -> None:
        """A training with each way to save."""
        steps_between = self._steps_between(size, job)
        for number in range(rounds):
            for contender in _in_turn((COPY, *contenders), number):
                asked = {"size": size, "job": job, "steps_between": steps_between}
                self._run("one_run", section, contender, number, asked)

    def upload(self, size: str, rounds: int) -> None:
        """The same bytes, raw and by Everstep, while nothing trains."""
        for number in range(rounds):
            for contender in _in_turn((RAW, EVERSTEP), number):
                self._run("uploads", "upload", contender, number, {"size": size})

    def restore(self, size: str, rounds: int) -> None:
        """Each way back."""
        for number in range(rounds):
            for contender in _in_turn(tuple(WAYS), number):
                # The run stores a state first: memory that it kept would be there for the way back,
                # which a process that has just started has not.
                self._run("restores", "restore", contender, number, {"size": size}, {})

    def recover(self, size: str, rounds: int) -> None:
        """A training process is killed."""
        for number in range(rounds):
            asked = {"size": size, "job": "all", "steps_between": 1}
            self._run("one_run", "recovery", RECOVERY, number, asked)

    def _steps_between(self, size: str, job: str) -> int:
        """Steps of one interval, the same for everyone: as many as this machine takes for it."""
        asked = {"size": size, "job": job, "steps_between": 4}
        found = self._run("one_run", "calibration", Nothing.name, 0, asked)
        assert found is not None
        share: float = found["state_bytes"] / SIZES[size].state_bytes
        seconds = SIZES[size].interval_seconds * max(share, 0.4)
        steps: list[float] = found["steps"]
        return max(2, round(seconds / statistics.median(steps)))

    def _run(
        self,
        module: str,
        section: str,
        contender: str,
        number: int,
        asked: dict[str, Any],
        environment: Mapping[str, str] = TRAINING_ENVIRONMENT,
    ) -> dict[str, Any] | None:
        asked = asked | {"contender": contender, "threads": THREADS}
        label = f"{section:<11} {asked['size']:<6} {asked.get('job', ''):<7} {contender}"
        self._say(f"{label} ...")
        try:
            found = run_process(
                f"{PACKAGE}.{module}", asked | {"endpoint": self._server.endpoint}, environment
            )
        except RuntimeError as error:
            if contender in (COPY, EVERSTEP, RECOVERY, Nothing.name):
                raise
            self._say(f"{label} failed: {error}")
            return None
        finally:
            self._server.empty()
        with self._results.open("a") as file:
            file.write(json.dumps({"section": section, "round": number, **asked, **found}) + "\n")
        return found

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)


def _in_turn(contenders: Sequence[str], number: int) -> Sequence[str]:
    """Forth and back, so that what the machine does meanwhile hits none more than others."""
    return contenders if number % 2 == 0 else tuple(reversed(contenders))


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--contenders", nargs="+", default=[*PEERS, EVERSTEP])
    parser.add_argument(
        "--sections", nargs="+", default=["training", "upload", "restore", "recovery"]
    )
    parser.add_argument("--results", type=Path, default=Path("build/bench-checkpoint.jsonl"))
    parser.add_argument("--report", type=Path, default=Path("build/bench-checkpoint"))
    parser.add_argument("--only-report", action="store_true", help="of the results that are there")
    asked = parser.parse_args()
    if not asked.only_report:
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        asked.results.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            process = MinioProcess(Path(folder), 0, ACCESS_KEY, SECRET_KEY)
            process.start()
            try:
                process.wait_ready(60)
                _run_all(asked, f"127.0.0.1:{process.port}")
            except RuntimeError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            finally:
                process.stop()
    print(write_report(asked.results, asked.report))
    return 0


def _run_all(asked: argparse.Namespace, endpoint: str) -> None:
    server = Server(endpoint)
    server.store()
    benchmark = Benchmark(server, asked.results)
    for size in asked.sizes:
        if "training" in asked.sections:
            for job in JOBS:
                benchmark.train(size, job, asked.contenders, asked.rounds, "training")
        if "client" in asked.sections:
            with running_sink() as sink:
                alone = Benchmark(sink, asked.results)
                alone.train(size, "all", asked.contenders, asked.rounds, "client")
        if "upload" in asked.sections:
            benchmark.upload(size, asked.rounds)
        if "restore" in asked.sections:
            benchmark.restore(size, asked.rounds)
        if "recovery" in asked.sections:
            benchmark.recover(size, asked.rounds)


if __name__ == "__main__":
    sys.exit(main())
