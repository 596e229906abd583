"""Who asks: creates, cancels and resumes, says it again when no answer comes, and watches."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

from everstep.calls import requests
from everstep.calls.async_connection import AsyncConnection
from everstep.control.v1.operations_pb2 import RestartPolicy
from everstep.errors import (
    AlreadyCompleted,
    AlreadyFinished,
    AlreadyRunning,
    DeadlineExceeded,
    EverstepError,
    NoCheckpoint,
    NotFinished,
    OperationNotFound,
    Reason,
    ResumeConflict,
    Unavailable,
)
from everstep.sdk import AsyncClient, Event, OperationState
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Process

T = TypeVar("T")

#: Between two tries of a call.
AGAIN_SECONDS: Final = 0.3
#: Between two looks at an operation that has ended.
RESUMED_SECONDS: Final = 1.5


class Watcher:
    """Watches one operation from its first event until closed, with the SDK."""

    def __init__(self, operation_id: str) -> None:
        self.operation_id = operation_id
        #: Every durable event, in the order in which it came.
        self.seen: list[Event] = []
        #: What the SDK gave up with; it has to go on by itself over every fault.
        self.errors: list[EverstepError] = []

    @property
    def sequence(self) -> int:
        """Of the newest durable event."""
        return self.seen[-1].sequence if self.seen else 0

    async def run(self, client: AsyncClient) -> None:
        """Runs until cancelled."""
        while True:
            try:
                async with client.operation(self.operation_id).events(self.sequence) as events:
                    async for event in events:
                        if event.is_durable:
                            self.seen.append(event)
            except EverstepError as error:
                self.errors.append(error)
            # An operation that has ended may be resumed.
            await asyncio.sleep(RESUMED_SECONDS)


class Client:
    """A process that is never killed; its connections are not spared."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self.process = process
        self.watchers: dict[int, Watcher] = {}
        #: Operations that were cancelled before there was a checkpoint to go on from.
        self.left_cancelled: set[str] = set()
        #: Operations that were deleted; what others ask of them then is refused.
        self.deleted: set[str] = set()
        #: What went wrong.
        self.faults: list[str] = []
        self._cluster = cluster
        self._turn = 0
        self._watching: dict[str, asyncio.Task[None]] = {}

    @property
    def operation_ids(self) -> list[str]:
        """Of those that were created, in the order of the plan."""
        return [watcher.operation_id for _, watcher in sorted(self.watchers.items())]

    async def create(self, number: int, strategy: TrainingStrategy) -> None:
        """Creates an operation, and watches it."""
        call = requests.create_operation(
            strategy,
            restart_policy=RestartPolicy(max_attempts=1000, backoff_seconds=0.2),
            request_id=str(uuid.uuid4()),
        )
        created = await self._asked(lambda at: AsyncConnection(at).ask(call))
        self.watchers[number] = watcher = Watcher(created.operation_id)
        watching = asyncio.create_task(watcher.run(AsyncClient(self._address())))
        self._watching[watcher.operation_id] = watching

    async def cancel_and_resume(self, number: int, seconds: float, *, discard: bool) -> None:
        """Cancels an operation, waits until it has stopped, and lets it go on; perhaps twice."""
        if number not in self.watchers:
            return
        operation_id = self.watchers[number].operation_id
        try:
            if await self._cancelled(operation_id, discard=discard):
                await asyncio.sleep(seconds)
                await self.resume(operation_id)
        except OperationNotFound:
            if operation_id not in self.deleted:
                raise

    async def delete(self, number: int, seconds: float) -> None:
        """Discards an operation, and deletes it once it has stopped, whoever resumes it."""
        if number not in self.watchers:
            return
        operation_id = self.watchers[number].operation_id
        await asyncio.sleep(seconds)
        self.deleted.add(operation_id)
        while True:
            try:
                await self._cancelled(operation_id, discard=True)
                await self._asked(lambda at: AsyncClient(at).operation(operation_id).delete())
            except NotFinished:
                await asyncio.sleep(AGAIN_SECONDS)
            except OperationNotFound:
                # The answer of an earlier try was lost, or another client was there first.
                break
            else:
                break
        self._watching[operation_id].cancel()
        self.watchers.pop(number, None)

    async def resume(self, operation_id: str) -> None:
        """Resumes an operation once it is cancelled; two clients do so at once, and one wins."""
        while True:
            if (await self.state(operation_id)).is_final:
                break
            await asyncio.sleep(AGAIN_SECONDS)
        answers = await asyncio.gather(
            self._resume(operation_id), self._resume(operation_id), return_exceptions=True
        )
        if all(isinstance(answer, NoCheckpoint) for answer in answers):
            self.left_cancelled.add(operation_id)
        for answer in answers:
            if isinstance(answer, OperationNotFound) and operation_id in self.deleted:
                continue
            if isinstance(answer, BaseException) and not isinstance(
                answer,
                AlreadyRunning | ResumeConflict | AlreadyCompleted | NoCheckpoint,
            ):
                self.faults.append(f"{operation_id}: {type(answer).__name__}: {answer}")

    async def state(self, operation_id: str) -> OperationState:
        """Where an operation stands."""
        operation = await self._asked(lambda at: AsyncClient(at).operation(operation_id).describe())
        return operation.state

    async def take_checkpoint(self, number: int) -> None:
        """Asks for a checkpoint, once."""
        if number in self.watchers:
            call = requests.checkpoint_operation(self.watchers[number].operation_id)
            try:
                await AsyncConnection(self._address()).ask(call)
            except EverstepError as error:
                # Not every moment is one for a checkpoint.
                del error

    async def drain(self, trainer: str, *, undo: bool = False) -> None:
        """Gives a trainer no more work, or work again."""
        try:
            await self._asked(lambda at: AsyncClient(at).drain_trainer(trainer, undo=undo))
        except EverstepError as error:
            if error.reason is not Reason.TRAINER_NOT_FOUND:
                raise

    async def collect_garbage(self) -> None:
        """Collects, as young as it is allowed."""
        try:
            await AsyncClient(self._address()).collect_garbage(grace=timedelta(0))
        except EverstepError as error:
            # The store is away, or the control plane; a manifest goes while it is read.
            if error.reason is Reason.INTERNAL:
                self.faults.append(f"collection: {error}")

    async def _cancelled(self, operation_id: str, *, discard: bool) -> bool:
        """Tells an operation to stop; False when it had ended."""
        try:
            await self._asked(
                lambda at: (
                    AsyncClient(at).operation(operation_id).cancel(discard=discard, wait=False)
                )
            )
        except AlreadyFinished:
            return False
        return True

    async def _resume(self, operation_id: str) -> None:
        request_id = str(uuid.uuid4())
        await self._asked(
            lambda at: AsyncClient(at).operation(operation_id).resume(request_id=request_id)
        )

    async def _asked(self, call: Callable[[str], Awaitable[T]]) -> T:
        """What the call returns, said again while no control plane can be reached."""
        while True:
            try:
                return await call(self._address())
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(AGAIN_SECONDS)
            except EverstepError as error:
                if error.reason is not Reason.CALL_CANCELLED:
                    raise
                await asyncio.sleep(AGAIN_SECONDS)

    def _address(self) -> str:
        """Another control plane each time."""
        names = self._cluster.control_planes
        self._turn += 1
        return f"{names[self._turn % len(names)]}:7070"
