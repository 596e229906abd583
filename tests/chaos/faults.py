"""One class for each kind of fault: what is done, and what ends it."""

from __future__ import annotations

import random
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeVar

from everstep.errors import (
    AlreadyCompleted,
    AlreadyFinished,
    AlreadyRunning,
    DeadlineExceeded,
    NoCheckpoint,
    ResumeConflict,
    ServiceUnavailable,
)
from everstep.sdk import Client
from tests.chaos.cluster import CONTROL_PLANE, LEASE_SECONDS, STORE, Cluster
from tests.chaos.watching import Watcher

T = TypeVar("T")

#: Seconds a client goes on asking a control plane that is away.
CLIENT_PATIENCE_SECONDS: Final = 120.0


@dataclass
class Scene:
    """What faults happen to."""

    cluster: Cluster
    client: Client
    watchers: list[Watcher]
    #: Operations that a client cancelled before there was a checkpoint to go on from.
    left_cancelled: set[str] = field(default_factory=set)
    #: What clients do meanwhile.
    threads: list[threading.Thread] = field(default_factory=list)
    #: What went wrong in them.
    client_faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault(ABC):
    """One fault, drawn; the same one may be done to the same scene again."""

    #: As the table names it.
    kind: ClassVar[str]
    #: What it is done to: two faults of one target do not overlap.
    target: str
    #: From the injection to the healing.
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.target}, {self.seconds:.1f} s"

    @abstractmethod
    def inject(self, scene: Scene) -> bool:
        """Does it; False when there was nothing to do it to."""

    def heal(self, scene: Scene) -> None:
        """Ends it; nothing to do for what passes by itself."""
        del scene


class TrainingProcessKilled(Fault):
    kind = "training process killed"

    def inject(self, scene: Scene) -> bool:
        watcher = scene.watchers[int(self.target.removeprefix("operation "))]
        return scene.cluster.kill_training(watcher.process_id)


class ServiceKilled(Fault):
    kind = "service killed"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.kill(self.target)
        return True

    def heal(self, scene: Scene) -> None:
        scene.cluster.start(self.target)


class TrainerKilled(ServiceKilled):
    kind = "trainer killed"


class ControlPlaneKilled(ServiceKilled):
    kind = "control plane killed"


class StoreKilled(ServiceKilled):
    kind = "store killed"


class TrainerStopped(ServiceKilled):
    kind = "trainer stopped (SIGTERM)"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.stop(self.target)
        return True


class ServiceSuspended(Fault):
    kind = "service suspended"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.suspend(self.target, with_children=False)
        return True

    def heal(self, scene: Scene) -> None:
        scene.cluster.wake(self.target)


class TrainerSuspended(ServiceSuspended):
    kind = "trainer suspended beyond its lease, its training goes on"


class MachineSuspended(ServiceSuspended):
    kind = "trainer and training suspended beyond the lease"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.suspend(self.target, with_children=True)
        return True


class ControlPlaneSuspended(ServiceSuspended):
    kind = "control plane suspended"


class StoreSuspended(ServiceSuspended):
    kind = "store suspended"


class LinkCut(Fault):
    kind = "connections cut"

    def inject(self, scene: Scene) -> bool:
        return scene.cluster.links[self.target].cut() > 0


class LinkFault(Fault):
    def heal(self, scene: Scene) -> None:
        scene.cluster.links[self.target].heal()


class LinkRefused(LinkFault):
    kind = "connections refused"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.links[self.target].refuse()
        return True


class LinkHeld(LinkFault):
    kind = "connections held: nothing goes through"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.links[self.target].hold()
        return True


class LinkSlow(LinkFault):
    kind = "connections slow"

    def inject(self, scene: Scene) -> bool:
        scene.cluster.links[self.target].slow(0.3)
        return True


class CancelledAndResumed(Fault):
    """A client cancels, waits, and resumes; it says each again until it is heard."""

    kind = "cancelled and resumed by a client"

    def inject(self, scene: Scene) -> bool:
        watcher = scene.watchers[int(self.target.removeprefix("operation "))]
        thread = threading.Thread(
            target=self._cancel_and_resume, args=(scene, watcher.operation_id), daemon=True
        )
        scene.threads.append(thread)
        thread.start()
        return True

    def _cancel_and_resume(self, scene: Scene, operation_id: str) -> None:
        handle = scene.client.operation(operation_id)
        request_id = str(uuid.uuid4())
        try:
            asked_until_heard(lambda: handle.cancel(timeout=CLIENT_PATIENCE_SECONDS))
            asked_until_heard(lambda: handle.resume(request_id=request_id))
        except (AlreadyFinished, AlreadyCompleted, AlreadyRunning, ResumeConflict):
            # It came to its end first, or another client of this trial resumed it.
            return
        except NoCheckpoint:
            scene.left_cancelled.add(operation_id)
        except Exception as error:
            scene.client_faults.append(f"{operation_id}: {type(error).__name__}: {error}")


def asked_until_heard(call: Callable[[], T]) -> T:
    """What the call returns, said again while the control plane cannot be reached."""
    deadline = time.monotonic() + CLIENT_PATIENCE_SECONDS
    while True:
        try:
            return call()
        except (ServiceUnavailable, DeadlineExceeded):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def draw_fault(
    draw: random.Random, trainers: list[str], operations: int, links: list[str]
) -> Fault:
    """A fault of any kind, at any of its targets."""
    trainer, link = draw.choice(trainers), draw.choice(links)
    operation = f"operation {draw.randrange(operations)}"
    short, long = draw.uniform(0, 3), draw.uniform(1, 8)
    beyond = LEASE_SECONDS * draw.uniform(1.3, 2.5)
    kinds: list[tuple[float, Fault]] = [
        (3, TrainingProcessKilled(operation, 0)),
        (2, TrainerKilled(trainer, long)),
        (1, TrainerStopped(trainer, short)),
        (2, ControlPlaneKilled(CONTROL_PLANE, short)),
        (1, StoreKilled(STORE, long)),
        (1, TrainerSuspended(trainer, beyond)),
        (2, MachineSuspended(trainer, beyond)),
        (1, ControlPlaneSuspended(CONTROL_PLANE, long)),
        (1, StoreSuspended(STORE, long)),
        (2, LinkCut(link, 0)),
        (2, LinkRefused(link, long)),
        (2, LinkHeld(link, long)),
        (1, LinkSlow(link, long)),
        (2, CancelledAndResumed(operation, 0)),
    ]
    return draw.choices([fault for _, fault in kinds], [weight for weight, _ in kinds])[0]


KINDS: Final = (
    TrainingProcessKilled,
    TrainerKilled,
    TrainerStopped,
    ControlPlaneKilled,
    StoreKilled,
    TrainerSuspended,
    MachineSuspended,
    ControlPlaneSuspended,
    StoreSuspended,
    LinkCut,
    LinkRefused,
    LinkHeld,
    LinkSlow,
    CancelledAndResumed,
)
