"""One trial: trainings begin, faults come and go, and the promises are held against the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from everstep.calls import requests
from everstep.calls.connection import Connection
from everstep.control.v1.operations_pb2 import RestartPolicy
from everstep.errors import EverstepError
from everstep.rpc.options import open_sync_channel
from everstep.sdk import Client, Event
from everstep.trainer.v1.trainer_pb2 import ListTrainingsRequest, Training
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.chaos.checks import PROMISES, Ending, Outcome, open_store
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Fault, Scene
from tests.chaos.plan import STRATEGIES, Plan
from tests.chaos.watching import Progress, Watcher

#: A fault comes after so long even where no event does: others may be what nobody hears of.
PATIENCE_SECONDS: Final = 15.0
#: All are over, and so many operations of ten seconds each have to end by themselves.
HEALING_SECONDS: Final = 150.0


@dataclass
class Report:
    """What happened in a trial."""

    plan: Plan
    #: By kind of fault.
    faults: Counter[str] = field(default_factory=Counter)
    #: What was broken, by promise.
    violations: dict[str, list[str]] = field(default_factory=dict)
    #: What happened, with the seconds since the beginning.
    timeline: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def note(self, text: str) -> None:
        """Something happened now."""
        self.timeline.append(f"{time.monotonic() - self._began:7.2f} s  {text}")


class Trial:
    """Runs a plan in a folder.

    Args:
        wanted: By strategy, the digests that it ends with when nothing happens.
    """

    def __init__(self, plan: Plan, folder: Path, wanted: Mapping[str, Mapping[str, str]]) -> None:
        self.report = Report(plan)
        self._plan = plan
        self._folder = folder
        self._wanted = wanted
        #: When each fault that was done is to be ended.
        self._open: list[tuple[float, Fault]] = []
        self._progress = Progress()

    def run(self) -> Report:
        """The report; exceptions are of the harness, not of what it tries."""
        with ExitStack() as stack:
            cluster = stack.enter_context(Cluster(self._folder, self._plan.trainers))
            self.report.note(f"{self._plan.trainers} trainers are there")
            direct = stack.enter_context(Client(cluster.direct_address))
            client = stack.enter_context(Client(cluster.client_address))
            scene = Scene(cluster, client, [])
            for name in self._plan.operations:
                operation_id = create(cluster.direct_address, STRATEGIES[name])
                watcher = Watcher(client, operation_id, self._progress)
                stack.callback(watcher.close)
                scene.watchers.append(watcher)
                self.report.note(f"{operation_id} ({name}) is created")
            self._do_faults(scene)
            self._end_faults(scene)
            self._await_ends(scene, direct)
            self._check(self._ending(scene, direct))
        return self.report

    def _do_faults(self, scene: Scene) -> None:
        for step in self._plan.steps:
            seen = self._progress.durable + step.after_events
            self._wait_for_events(scene, seen)
            self._end_faults(scene, step.fault.target)
            done = step.fault.inject(scene)
            self.report.note(f"{step.fault}{'' if done else ': nothing to do it to'}")
            if done:
                self.report.faults[step.fault.kind] += 1
                self._open.append((time.monotonic() + step.fault.seconds, step.fault))

    def _wait_for_events(self, scene: Scene, count: int) -> None:
        """Until so many events were seen, ending each fault when it is due."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (now := time.monotonic()) < deadline and self._progress.durable < count:
            due = min([deadline, *(end for end, _ in self._open)])
            self._progress.wait_for(lambda: self._progress.durable >= count, max(0.0, due - now))
            for end, fault in list(self._open):
                if end <= time.monotonic():
                    self._end(scene, end, fault)

    def _end_faults(self, scene: Scene, target: str = "") -> None:
        """Waits until each fault is due, of a target or (empty) of all, and ends it."""
        for end, fault in sorted(self._open, key=lambda item: item[0]):
            if not target or fault.target == target:
                time.sleep(max(0.0, end - time.monotonic()))
                self._end(scene, end, fault)

    def _end(self, scene: Scene, end: float, fault: Fault) -> None:
        self._open.remove((end, fault))
        fault.heal(scene)
        if fault.seconds:
            self.report.note(f"over: {fault}")

    def _await_ends(self, scene: Scene, direct: Client) -> None:
        """All is healed: every operation comes to its end, and every trainer to rest."""
        deadline = time.monotonic() + HEALING_SECONDS
        for thread in scene.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                scene.client_faults.append("a client waits for its operation to be cancelled")

        def seen_to_the_end() -> bool:
            return all(
                operation.state.is_final and watcher.sequence >= operation.last_sequence
                for watcher in scene.watchers
                for operation in [direct.operation(watcher.operation_id).describe()]
            )

        self._progress.wait_for(seen_to_the_end, max(0.0, deadline - time.monotonic()))
        self._progress.wait_for(lambda: not still_running(scene.cluster), 20)
        self._progress.wait_for(lambda: not kept(scene.cluster), 20)
        # What a thawed trainer says of an attempt that was given up may still be noted.
        self._progress.wait_for(seen_to_the_end, 10)
        self.report.note("all is over")

    def _ending(self, scene: Scene, direct: Client) -> Ending:
        outcomes = []
        for name, watcher in zip(self._plan.operations, scene.watchers, strict=True):
            handle = direct.operation(watcher.operation_id)
            operation = handle.describe()
            outcomes.append(
                Outcome(
                    operation=operation,
                    replay=replay(direct, watcher.operation_id, operation.last_sequence),
                    watcher=watcher,
                    wanted=self._wanted[name],
                    left_cancelled=watcher.operation_id in scene.left_cancelled,
                )
            )
        store = open_store(scene.cluster.direct_store_url)
        return Ending(outcomes, direct, store, still_running(scene.cluster), scene.client_faults)

    def _check(self, ending: Ending) -> None:
        for promise, check in PROMISES.items():
            try:
                broken = list(check(ending))
            except EverstepError as error:
                broken = [f"could not be checked: {error.reason} {error.message}"]
            self.report.violations[promise] = broken
            for violation in broken:
                self.report.note(f"VIOLATED {promise}: {violation}")
        for outcome in ending.outcomes:
            operation = outcome.operation
            self.report.note(f"{operation.id} {operation.state}, {len(outcome.replay)} events")
            for attempt in operation.attempts:
                self.report.note(
                    f"  attempt {attempt.number} on {attempt.trainer_id}, steps "
                    f"{attempt.first_step} to {attempt.last_step}: {attempt.end} "
                    f"{attempt.end_reason}"
                )


def create(address: str, strategy: TrainingStrategy) -> str:
    """A new operation that is not given up for attempts lost in a row; its id."""
    policy = RestartPolicy(max_attempts=100, backoff_seconds=0.2)
    call = requests.create_operation(strategy, restart_policy=policy)
    with Connection(address) as connection:
        return connection.ask(call).operation_id


def replay(client: Client, operation_id: str, last: int) -> list[Event]:
    """The log from its beginning to a sequence."""
    events: list[Event] = []
    with client.operation(operation_id).events(transient=False) as stream:
        for event in stream:
            events.append(event)
            if event.sequence >= last:
                break
    return events


def still_running(cluster: Cluster) -> list[str]:
    """Attempts that trainers have not ended."""
    return [name for name, training in kept(cluster).items() if not training.finished]


def kept(cluster: Cluster) -> dict[str, Training]:
    """Attempts that trainers have not been told to forget, asked directly."""
    found = {}
    for name in cluster.trainer_names:
        with open_sync_channel(cluster.services[name].address) as channel:
            answer = TrainerServiceStub(channel).ListTrainings(
                ListTrainingsRequest(), timeout=10, wait_for_ready=True
            )
        for training in answer.trainings:
            found[f"attempt {training.attempt} of {training.operation_id} on {name}"] = training
    return found
