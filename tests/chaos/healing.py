"""How long it takes to heal: `python -m tests.chaos.healing --rounds 20`.

One fault at a time in a calm cluster, and the seconds from it to the first step that a watcher sees
afterwards. The last lines are a table: the number of rounds, the median and the 99th percentile.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from everstep.sdk import Client, OperationState
from tests.chaos.cluster import CONTROL_PLANE, LEASE_SECONDS, Cluster
from tests.chaos.trial import create
from tests.chaos.watching import Progress, Watcher
from tests.services.strategies import digits

FOLDER = Path("build/healing")
#: It never ends by itself; a checkpoint every second or so.
ENDLESS = digits(epochs=10_000, checkpoint={"every_steps": 100, "every_epochs": 0, "keep_last": 3})
PATIENCE_SECONDS = 60.0
#: A process that computes nothing for so long waits.
LOOK_SECONDS = 2.0


class Patient:
    """One training without end, watched."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self.progress = Progress()
        self.watcher = Watcher(client, create(cluster.direct_address, ENDLESS), self.progress)
        self.wait(lambda: self.watcher.step > 0)

    @property
    def trainer(self) -> str:
        """The name of the one that trains it."""
        return self.client.operation(self.watcher.operation_id).describe().attempts[-1].trainer_id

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds after an event."""
        assert self.progress.wait_for(condition, PATIENCE_SECONDS), "it has not healed"

    def settle(self) -> None:
        """Until there is another checkpoint, and each trainer has a spare process that waits."""
        seen = self.progress.durable
        self.wait(lambda: self.progress.durable >= seen + 3)
        spares: dict[int, float] = {}
        while True:
            found = self._spares()
            if found == spares and len(found) == len(self.cluster.trainer_names):
                return
            spares = found
            self.progress.wait_for(lambda: False, LOOK_SECONDS)

    def _spares(self) -> dict[int, float]:
        """The seconds that each process has computed that does not train, by process id."""
        return {
            process.pid: sum(process.cpu_times()[:2])
            for name in self.cluster.trainer_names
            for process in self.cluster.training_processes(name)
            if process.pid != self.watcher.process_id
        }


def training_process_killed(patient: Patient) -> float:
    """To a step in another process, from the snapshot in memory."""
    watcher, process_id = patient.watcher, patient.watcher.process_id
    began = time.monotonic()
    patient.cluster.kill_training(process_id)
    patient.wait(lambda: watcher.process_id not in (0, process_id))
    seen = watcher.steps
    patient.wait(lambda: watcher.steps > seen)
    return time.monotonic() - began


def trainer_killed(patient: Patient) -> float:
    """To a step on the other trainer, from the newest checkpoint; the dead one is started later."""
    name, attempt = patient.trainer, patient.watcher.attempt
    began = time.monotonic()
    patient.cluster.kill(name)
    patient.wait(lambda: patient.watcher.attempt > attempt)
    seconds = time.monotonic() - began
    patient.cluster.start(name)
    return seconds


def trainer_killed_and_started(patient: Patient) -> float:
    """To a step of another attempt, when the dead trainer is started again at once."""
    name, attempt = patient.trainer, patient.watcher.attempt
    began = time.monotonic()
    patient.cluster.kill(name)
    patient.cluster.start(name)
    patient.wait(lambda: patient.watcher.attempt > attempt)
    return time.monotonic() - began


def control_plane_killed(patient: Patient) -> float:
    """To the next event that a watcher sees, when the control plane is started again at once."""
    began = time.monotonic()
    patient.cluster.kill(CONTROL_PLANE)
    dead = time.monotonic()
    patient.cluster.start(CONTROL_PLANE)
    patient.wait(lambda: patient.watcher.last_heard > dead)
    return time.monotonic() - began


FAULTS: dict[str, Callable[[Patient], float]] = {
    "training process killed": training_process_killed,
    "trainer killed, another goes on": trainer_killed,
    "trainer killed, started at once": trainer_killed_and_started,
    "control plane killed, started at once": control_plane_killed,
}


@contextmanager
def a_patient() -> Iterator[Patient]:
    """A training without end in a cluster of two trainers."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(FOLDER.resolve(), 2))
        client = stack.enter_context(Client(cluster.client_address))
        patient = Patient(cluster, client)
        stack.callback(patient.watcher.close)
        yield patient
        operation = client.operation(patient.watcher.operation_id).describe()
        assert operation.state is OperationState.RUNNING, operation


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that no more than the rest exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def print_table(measured: dict[str, list[float]]) -> None:
    table = Table("fault", "rounds", "median s", "p99 s", "longest s", box=None)
    for name, seconds in measured.items():
        if seconds:
            shown = (statistics.median(seconds), percentile(seconds, 0.99), max(seconds))
            table.add_row(name, str(len(seconds)), *(f"{value:.2f}" for value in shown))
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    arguments = parser.parse_args()
    # The services run in sessions of their own: who is told to stop stops them first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    deadline = time.monotonic() + arguments.seconds
    measured: dict[str, list[float]] = {name: [] for name in FAULTS}
    print(f"lease {LEASE_SECONDS:g} s, one training, two trainers with a spare process each")
    with a_patient() as patient:
        for _ in range(arguments.rounds):
            for name, fault in FAULTS.items():
                if time.monotonic() < deadline:
                    patient.settle()
                    measured[name].append(fault(patient))
                    print(f"{measured[name][-1]:6.2f} s  {name}", flush=True)
    print_table(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
