"""One class for each kind of fault: what is done, and what ends it."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from tests.simulation.clients import Client
from tests.simulation.cluster import CLIENT, LEASE_SECONDS, Cluster
from tests.simulation.training import SimulatedOrchestrator

STORE: Final = "store"
DATABASE: Final = "database"


@dataclass
class Scene:
    """What faults happen to."""

    cluster: Cluster
    client: Client
    note: Callable[[str], None]
    #: What clients do meanwhile.
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def ask(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets a client do something beside all else."""
        loop = self.cluster.loop
        self.tasks.append(loop.create_task(work, context=self.client.process.context))


@dataclass(frozen=True)
class Fault(ABC):
    """One fault, drawn; two of one target do not overlap."""

    #: As the story names it.
    kind: ClassVar[str]
    #: What it is done to.
    target: str
    #: From the injection to the healing.
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.target}, {self.seconds:.2f} s"

    @abstractmethod
    def inject(self, scene: Scene) -> None:
        """Does it."""

    def heal(self, scene: Scene) -> None:
        """Ends it; nothing to do for what passes by itself."""
        del scene


class TrainingProcessKilled(Fault):
    kind = "training process killed"

    def inject(self, scene: Scene) -> None:
        del scene
        for work in list(SimulatedOrchestrator.working):
            if work.process is not None and work.process.name == self.target:
                work.kill_child()


class ServiceKilled(Fault):
    kind = "service killed"

    def inject(self, scene: Scene) -> None:
        scene.cluster.kill(self.target)

    def heal(self, scene: Scene) -> None:
        scene.cluster.start(self.target)


class TrainerLost(ServiceKilled):
    """Its machine does not come back: another one takes its name, with an empty disk."""

    kind = "trainer lost with its disk"

    def inject(self, scene: Scene) -> None:
        scene.cluster.kill(self.target)
        scene.cluster.lose_disk(self.target)


class ServiceSuspended(Fault):
    kind = "service suspended"

    def inject(self, scene: Scene) -> None:
        scene.cluster.loop.suspend(scene.cluster.processes[self.target])

    def heal(self, scene: Scene) -> None:
        scene.cluster.loop.resume(scene.cluster.processes[self.target])


class ServiceStopped(Fault):
    kind = "service stopped"

    def inject(self, scene: Scene) -> None:
        scene.cluster.stop(self.target)

    def heal(self, scene: Scene) -> None:
        # A supervisor's patience has an end, too.
        scene.cluster.kill(self.target)
        scene.cluster.start(self.target)


class TrainerDrained(Fault):
    kind = "trainer drained"

    def inject(self, scene: Scene) -> None:
        scene.ask(scene.client.drain(self.target))

    def heal(self, scene: Scene) -> None:
        scene.ask(scene.client.drain(self.target, undo=True))


class StoreAway(Fault):
    kind = "store away"

    def inject(self, scene: Scene) -> None:
        scene.cluster.bucket.away = True

    def heal(self, scene: Scene) -> None:
        scene.cluster.bucket.away = False


class StoreSlow(Fault):
    kind = "store slow"

    def inject(self, scene: Scene) -> None:
        scene.cluster.bucket.slowest = 0.4

    def heal(self, scene: Scene) -> None:
        scene.cluster.bucket.slowest = 0.004


class DatabaseFails(Fault):
    kind = "database fails"

    def inject(self, scene: Scene) -> None:
        scene.cluster.disk.failing = True

    def heal(self, scene: Scene) -> None:
        scene.cluster.disk.failing = False


class LinkFault(Fault):
    """Something between two machines."""

    @property
    def ends(self) -> tuple[str, str]:
        one, _, other = self.target.partition(" to ")
        return one, other

    def heal(self, scene: Scene) -> None:
        scene.cluster.network.heal(*self.ends)


class LinkCut(LinkFault):
    kind = "link cut"

    def inject(self, scene: Scene) -> None:
        scene.cluster.network.cut(*self.ends)


class LinkHalfOpen(LinkFault):
    kind = "link half open"

    def inject(self, scene: Scene) -> None:
        scene.cluster.network.half_open(*self.ends)


class LinkRefused(LinkFault):
    kind = "link refused"

    def inject(self, scene: Scene) -> None:
        scene.cluster.network.link(*self.ends).refused = True
        scene.cluster.network.cut(*self.ends)


class LinkHeld(LinkFault):
    kind = "link held"

    def inject(self, scene: Scene) -> None:
        scene.cluster.network.link(*self.ends).held = True


class LinkSlow(LinkFault):
    kind = "link slow"

    def inject(self, scene: Scene) -> None:
        scene.cluster.network.link(*self.ends).slowest = 0.8


class LinkLossy(LinkFault):
    """Requests and answers are lost or come twice, streams break."""

    kind = "link lossy"

    def inject(self, scene: Scene) -> None:
        scene.cluster.network.link(*self.ends).lossy = 0.5


class ControlPlaneReplaced(Fault):
    """It sleeps, and another one that takes over its attempts does not reach the trainers."""

    kind = "control plane suspended, trainers out of reach of the others"

    def inject(self, scene: Scene) -> None:
        cluster = scene.cluster
        cluster.loop.suspend(cluster.processes[self.target])
        for other, trainer in self._links(cluster):
            cluster.network.link(other, trainer).refused = True
            cluster.network.cut(other, trainer)

    def heal(self, scene: Scene) -> None:
        cluster = scene.cluster
        cluster.loop.resume(cluster.processes[self.target])
        for other, trainer in self._links(cluster):
            cluster.network.heal(other, trainer)

    def _links(self, cluster: Cluster) -> list[tuple[str, str]]:
        others = [name for name in cluster.control_planes if name != self.target]
        return [(other, trainer) for other in others for trainer in cluster.trainers]


class OperationFault(Fault):
    """A client does something with an operation."""

    @property
    def number(self) -> int:
        return int(self.target.removeprefix("operation "))


class CancelledAndResumed(OperationFault):
    kind = "cancelled and resumed"

    def inject(self, scene: Scene) -> None:
        scene.ask(scene.client.cancel_and_resume(self.number, self.seconds, discard=False))


class DiscardedAndResumed(OperationFault):
    kind = "cancelled without a checkpoint and resumed"

    def inject(self, scene: Scene) -> None:
        scene.ask(scene.client.cancel_and_resume(self.number, self.seconds, discard=True))


class Deleted(OperationFault):
    kind = "discarded and deleted"

    def inject(self, scene: Scene) -> None:
        scene.ask(scene.client.delete(self.number, self.seconds))


class CheckpointAsked(OperationFault):
    kind = "checkpoint asked"

    def inject(self, scene: Scene) -> None:
        scene.ask(scene.client.take_checkpoint(self.number))


class GarbageCollected(Fault):
    kind = "garbage collected"

    def inject(self, scene: Scene) -> None:
        scene.ask(scene.client.collect_garbage())


KINDS: Final[dict[type[Fault], int]] = {
    TrainingProcessKilled: 2,
    ServiceKilled: 4,
    TrainerLost: 1,
    ServiceSuspended: 4,
    ServiceStopped: 2,
    TrainerDrained: 1,
    StoreAway: 1,
    StoreSlow: 1,
    DatabaseFails: 1,
    LinkCut: 2,
    LinkHalfOpen: 1,
    LinkRefused: 2,
    LinkHeld: 2,
    LinkSlow: 1,
    LinkLossy: 3,
    ControlPlaneReplaced: 2,
    CancelledAndResumed: 2,
    DiscardedAndResumed: 1,
    Deleted: 1,
    CheckpointAsked: 1,
    GarbageCollected: 1,
}


def draw_fault(
    draw: random.Random, control_planes: list[str], trainers: list[str], operations: int
) -> Fault:
    """A fault of any kind, at any of its targets."""
    (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
    beyond = LEASE_SECONDS * draw.uniform(1.2, 2.5)
    seconds = draw.choice((draw.uniform(0, 1), draw.uniform(0.5, 3), beyond, beyond))
    if issubclass(kind, LinkFault):
        links = [
            f"{control_plane} to {other}"
            for control_plane in control_planes
            for other in (*trainers, CLIENT)
        ]
        return kind(draw.choice(links), seconds)
    if issubclass(kind, OperationFault):
        return kind(f"operation {draw.randrange(operations)}", draw.uniform(0, 2))
    if kind in (TrainingProcessKilled, TrainerLost, TrainerDrained):
        return kind(draw.choice(trainers), seconds)
    if kind is DatabaseFails:
        return kind(DATABASE, draw.uniform(0.05, 1.5))
    if kind in (StoreAway, StoreSlow):
        return kind(STORE, seconds)
    if kind is ControlPlaneReplaced:
        return kind(draw.choice(control_planes), LEASE_SECONDS * draw.uniform(2, 5))
    if kind is GarbageCollected:
        return kind("collector", 0)
    return kind(draw.choice([*control_planes, *trainers]), seconds)
