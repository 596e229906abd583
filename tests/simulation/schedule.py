"""One schedule: trainings begin, faults come and go, and the promises are held against the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final, TypeVar

import grpc

from control_plane.states import FINAL_STATES, State
from everstep.errors import EverstepError, ResumeConflict, Unavailable, WrongState
from everstep.rpc.options import UNARY_DEADLINE_SECONDS
from everstep.sdk import AsyncClient, Checkpoint, Event
from everstep.sdk.checkpoints import CollectedGarbage, VerifiedCheckpoint
from everstep.trainer.v1.trainer_pb2 import ListTrainingsRequest
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.simulation.chain import wanted_digests
from tests.simulation.checks import PROMISES, Ending, Outcome
from tests.simulation.clients import Client
from tests.simulation.cluster import CLIENT, Cluster
from tests.simulation.faults import Fault, Scene
from tests.simulation.loop import Process, SimulatedLoop, Stalled
from tests.simulation.network import Network
from tests.simulation.plan import Plan, draw_plan, strategy
from tests.simulation.store import Bucket, SimulatedStore
from tests.simulation.world import simulated

T = TypeVar("T")

#: Seconds until all has to be quiet, once every fault is over.
QUIET_SECONDS: Final = 120.0
#: Between two looks at whether it is.
LOOK_SECONDS: Final = 0.5


@dataclass
class Report:
    """What happened in a schedule."""

    plan: Plan
    #: What was broken, by promise.
    violations: dict[str, list[str]] = field(default_factory=dict)
    #: What happened, with the seconds since the beginning.
    story: list[str] = field(default_factory=list)
    #: Of all that happened, to the last callback.
    trace: str = ""
    #: Simulated.
    seconds: float = 0.0

    @property
    def broken(self) -> list[str]:
        """Every violation, with its promise."""
        return [
            f"{promise}: {text}" for promise, texts in self.violations.items() for text in texts
        ]


def run_schedule(seed: int) -> Report:
    """Runs the schedule of a seed; exceptions are of the simulation, not of what it tries."""
    return Schedule(draw_plan(seed)).run()


class Schedule:
    """Runs a plan."""

    def __init__(self, plan: Plan) -> None:
        self.report = Report(plan)
        self._plan = plan
        self._draw = random.Random(f"schedule {plan.seed}")
        self._loop = SimulatedLoop(self._draw)
        self._network = Network(self._loop, self._draw, self.note)
        self._bucket = Bucket(self._loop, self._draw)

    def note(self, text: str) -> None:
        """Something happened now."""
        self.report.story.append(f"{self._loop.time():8.3f} s  {text}")

    def run(self) -> Report:
        """The report."""
        loop = self._loop
        try:
            with simulated(loop, self._network, self._bucket, self._plan.seed):
                try:
                    self._check(loop.run_until_complete(self._run()))
                except EverstepError as error:
                    self._violated("nothing stuck", f"it could not be checked: {error}")
                except Stalled:
                    self._violated("nothing stuck", "nothing will ever happen again")
                finally:
                    self._wind_up()
        finally:
            loop.close()
        self.report.seconds = loop.time()
        told = "\n".join(self.report.story)
        self.report.trace = sha256(f"{told}\n{loop.steps} {loop.time()}".encode()).hexdigest()
        return self.report

    async def _run(self) -> Scene:
        plan = self._plan
        self._cluster = cluster = Cluster(
            self._loop,
            self._network,
            self._bucket,
            self._draw,
            plan.control_planes,
            plan.trainers,
        )
        for name in cluster.services:
            cluster.start(name)
        self._people = Process(CLIENT)
        self._observer = Process("observer")
        client = Client(cluster, self._people)
        scene = Scene(cluster, client, self.note)
        for number, training in enumerate(plan.trainings):
            scene.ask(self._create(client, number, training.at))
        await self._do_faults(scene)
        await self._settle(scene)
        return scene

    async def _create(self, client: Client, number: int, at: float) -> None:
        await asyncio.sleep(at)
        training = self._plan.trainings[number]
        await client.create(
            number,
            strategy(training.seed, training.epochs, training.every_steps, training.keep_last),
        )
        self.note(f"operation {number} is {client.watchers[number].operation_id}")

    async def _do_faults(self, scene: Scene) -> None:
        """Each at its time, and its end at its own."""
        open_faults: list[tuple[float, Fault]] = []

        def end(due: float, fault: Fault) -> None:
            open_faults.remove((due, fault))
            fault.heal(scene)
            self.note(f"over: {fault}")

        async def until(moment: float) -> None:
            while open_faults:
                due, fault = min(open_faults, key=lambda item: item[0])
                if due > moment:
                    break
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                end(due, fault)
            if moment < float("inf"):
                await asyncio.sleep(max(0.0, moment - self._loop.time()))

        for step in self._plan.steps:
            await until(step.at)
            for due, fault in list(open_faults):
                if fault.target == step.fault.target:
                    end(due, fault)
            self.note(str(step.fault))
            step.fault.inject(scene)
            open_faults.append((self._loop.time() + step.fault.seconds, step.fault))
        await until(float("inf"))

    async def _settle(self, scene: Scene) -> None:
        """All is healed: clients come to their ends, operations and trainers to rest."""
        self.note("all faults are over")
        deadline = self._loop.time() + QUIET_SECONDS
        for task in scene.tasks:
            await asyncio.wait([task], timeout=max(0.0, deadline - self._loop.time()))
            if not task.done():
                scene.client.faults.append("a client waits in vain")
            elif (error := task.exception()) is not None:
                scene.client.faults.append(f"a client failed: {type(error).__name__}: {error}")
        undone = quiet = False
        while self._loop.time() < deadline and not quiet:
            undone = undone or await self._seen(self._undo_drains(scene))
            if undone and await self._seen(self._is_quiet(scene)):
                # What a trainer says of an attempt that was given up may still be noted.
                await asyncio.sleep(2 * LOOK_SECONDS)
                quiet = await self._seen(self._is_quiet(scene))
            await asyncio.sleep(LOOK_SECONDS)
        self.note("all is quiet" if quiet else "it does not become quiet")

    async def _seen(self, look: Coroutine[Any, Any, bool]) -> bool:
        """What a look saw; False when a service did not answer it."""
        try:
            return await self._observe(look)
        except (Unavailable, grpc.aio.AioRpcError):
            return False

    async def _undo_drains(self, scene: Scene) -> bool:
        client = self._direct(scene)
        for trainer in await client.trainers():
            await client.drain_trainer(trainer.id, undo=True)
        return True

    async def _is_quiet(self, scene: Scene) -> bool:
        heads = scene.cluster.disk.heads()
        for watcher in scene.client.watchers.values():
            state, last_sequence = heads.get(watcher.operation_id, ("deleted", 0))
            if state not in FINAL_STATES or watcher.sequence < last_sequence:
                return False
        if scene.cluster.disk.has_orphans() or await self._still_running(scene):
            return False
        client = self._direct(scene)
        for operation_id, (state, _) in heads.items():
            handle = client.operation(operation_id)
            if state == State.CANCELLED and (await handle.describe()).resumable:
                # A cancellation whose answer was lost, perhaps: somebody lets it go on.
                scene.client.left_cancelled.discard(operation_id)
                with contextlib.suppress(WrongState, ResumeConflict):
                    await handle.resume()
                return False
        return True

    def _direct(self, scene: Scene) -> AsyncClient:
        return AsyncClient(f"{scene.cluster.control_planes[0]}:7070")

    async def _still_running(self, scene: Scene) -> list[str]:
        found = []
        for name in scene.cluster.trainers:
            stub = TrainerServiceStub(self._network.open_channel(f"{name}:7071"))
            answer = await stub.ListTrainings(
                ListTrainingsRequest(), timeout=UNARY_DEADLINE_SECONDS
            )
            found += [
                f"attempt {training.attempt} of {training.operation_id} on {name}"
                for training in answer.trainings
                if not training.finished
            ]
        return found

    def _observe(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Looks from a machine whose links nothing happens to."""
        return self._loop.create_task(work, context=self._observer.context)

    def _look(self, work: Coroutine[Any, Any, T]) -> T:
        """As `_observe`, when nothing else is to be waited for."""
        return self._loop.run_until_complete(self._observe(work))

    def _check(self, scene: Scene) -> None:
        client = self._direct(scene)
        outcomes = []
        for number, watcher in sorted(scene.client.watchers.items()):
            training = self._plan.trainings[number]
            operation = self._look(client.operation(watcher.operation_id).describe())
            outcomes.append(
                Outcome(
                    operation=operation,
                    replay=self._look(_replay(client, operation.id, operation.last_sequence)),
                    watcher=watcher,  # type: ignore[arg-type]
                    wanted=wanted_digests(training.seed, training.epochs),
                    left_cancelled=watcher.operation_id in scene.client.left_cancelled,
                )
            )
            self._tell(outcomes[-1])
        faults = [*scene.client.faults, *self._loop.failures]
        faults += [
            f"{name} has ended by itself"
            for name in scene.cluster.services
            if not scene.cluster.running(name)
        ]
        ending = Ending(
            outcomes,
            DirectClient(client, self._look),  # type: ignore[arg-type]
            SimulatedStore(self._bucket),
            self._look(self._still_running(scene)),
            faults,
        )
        for promise, check in PROMISES.items():
            for violation in check(ending, scene.cluster):
                self._violated(promise, violation)

    def _tell(self, outcome: Outcome) -> None:
        operation = outcome.operation
        self.note(f"{operation.id} {operation.state}, {len(outcome.replay)} events")
        for attempt in operation.attempts:
            self.note(
                f"  attempt {attempt.number} on {attempt.trainer_id}, steps "
                f"{attempt.first_step} to {attempt.last_step}: {attempt.end} {attempt.end_reason}"
            )

    def _violated(self, promise: str, violation: str) -> None:
        self.report.violations.setdefault(promise, []).append(violation)
        self.note(f"VIOLATED {promise}: {violation}")

    def _wind_up(self) -> None:
        """Ends every task, so that nothing of this schedule is left for the next one."""
        self._cluster.close()
        for process in (self._people, self._observer):
            self._loop.kill(process)
        processes = (*self._cluster.processes.values(), self._people, self._observer)
        for _ in range(50):
            if not any(process.tasks for process in processes):
                break
            self._loop.run_until_complete(asyncio.sleep(0.1))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())


class DirectClient:
    """What a check asks of a client: each call runs the loop until it is answered."""

    def __init__(
        self, client: AsyncClient, look: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        self._client = client
        self._look = look

    def checkpoints(self) -> list[Checkpoint]:
        """As Client.checkpoints."""
        listed: list[Checkpoint] = self._look(_listed(self._client.checkpoints()))
        return listed

    def verify_all(self) -> list[VerifiedCheckpoint]:
        """As Client.verify_all."""
        verified: list[VerifiedCheckpoint] = self._look(_listed(self._client.verify_all()))
        return verified

    def collect_garbage(self, *, grace: timedelta) -> CollectedGarbage:
        """As Client.collect_garbage."""
        collected: CollectedGarbage = self._look(self._client.collect_garbage(grace=grace))
        return collected


async def _listed(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


async def _replay(client: AsyncClient, operation_id: str, last: int) -> list[Event]:
    """The log from its beginning to a sequence."""
    replay: list[Event] = []
    async with client.operation(operation_id).events(transient=False) as events:
        async for event in events:
            replay.append(event)
            if event.sequence >= last:
                break
    return replay
