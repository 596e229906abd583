"""Gives operations to trainers, follows their attempts, and takes up those that were left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import grpc
import structlog
from sqlalchemy import Connection

from control_plane import times
from control_plane.assignment import assign_round
from control_plane.attempt_follower import AttemptFollower, FollowerParts
from control_plane.checkpoints import Checkpoints
from control_plane.database import operations, queue, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.forgetting import AttemptForgetter
from control_plane.full_trainers import FullTrainers
from control_plane.leases import TrainerLeases
from control_plane.states import ATTEMPT_STATES, State
from control_plane.trainer_channels import SIDE_CALL_SECONDS, TrainerChannels
from everstep.errors import EverstepError, Reason
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import CheckpointTrainingRequest

_log = structlog.get_logger(__name__)

#: Seconds between rounds when nothing wakes the dispatcher.
ROUND_SECONDS: Final = 1.0
_ATTEMPT_STATES: Final = tuple(state.value for state in ATTEMPT_STATES)


class Dispatcher:
    """Runs for as long as the control plane does.

    Args:
        database: Holds the queue, and who follows which attempt.
        log: Takes what trainers say.
        checkpoints: Applies retention after each commit.
        owner: The name of this control plane; another one with the same database has another.
        lease_seconds: Of trainers, and of this control plane's claim to its attempts.
        unreachable_seconds: How long a trainer that was reached before is not given up while its
            heartbeat comes.
    """

    def __init__(
        self,
        database: Database,
        log: EventLog,
        checkpoints: Checkpoints,
        owner: str,
        lease_seconds: float,
        unreachable_seconds: float,
    ) -> None:
        self._database = database
        self._checkpoints = checkpoints
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._leases = TrainerLeases(database, lease_seconds)
        self._channels = TrainerChannels()
        self._full = FullTrainers(database, self._channels, self.wake)
        self._forgetter = AttemptForgetter(database, self._channels, log)
        self._parts = FollowerParts(
            database,
            log,
            self._channels,
            self._leases,
            unreachable_seconds,
            self._committed,
            self._full.add,
        )
        self._woken = asyncio.Event()
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._retaining: set[str] = set()
        self._forgetting: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._lease_renewed = 0.0

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def run(self) -> None:
        """Works until cancelled; what fails is tried again in the next round."""
        async with asyncio.TaskGroup() as beside:
            beside.create_task(self._leases.keep_running())
            await self._run_rounds()

    async def _run_rounds(self) -> None:
        while True:
            self._woken.clear()
            for step in (
                self._take_over,
                self._ask_full_trainers,
                self._assign,
                self._forget,
            ):
                await self._tried(step)
            due = await self._seconds_to_next_due()
            try:
                async with asyncio.timeout(min(ROUND_SECONDS, due)):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Stops following; the trainings go on, and are taken up by the next control plane."""
        tasks = [*self._followers.values(), *self._side_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channels.close()

    async def take_checkpoint(self, attempt: AttemptRecord) -> None:
        """Asks the trainer of a running attempt for a checkpoint.

        Raises:
            EverstepError: NOT_RUNNING when the training has not begun yet or has just finished.
        """
        trainer = await self._database.read(trainers.find, attempt.trainer_id)
        if trainer is None:
            raise _not_running(attempt)
        try:
            await self._channels.stub(trainer.address).CheckpointTraining(
                CheckpointTrainingRequest(
                    operation_id=attempt.operation_id, attempt=attempt.number
                ),
                timeout=SIDE_CALL_SECONDS,
            )
        except grpc.aio.AioRpcError as failure:
            error = error_from_call(failure)
            if error.reason is Reason.TRAINING_NOT_FOUND:
                raise _not_running(attempt) from None
            raise error from None

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except EverstepError as error:
            _log.warning("dispatcher's round failed", error=error.message, reason=error.reason)
        except Exception:
            _log.exception("dispatcher's round failed")

    async def _take_over(self) -> None:
        """Follows every attempt that is this control plane's, or whose own has gone."""
        mine = await self._database.read(
            operations.owned_or_abandoned, _ATTEMPT_STATES, self._owner, times.now()
        )
        renew = time.monotonic() - self._lease_renewed >= self._lease_seconds / 3
        for operation_id in mine:
            if renew or operation_id not in self._followers:
                number = await self._database.write(
                    _take_over, operation_id, self._owner, self._lease_seconds
                )
                if number is not None:
                    self._follow(operation_id, number)
        if renew:
            self._lease_renewed = time.monotonic()
        for operation_id in set(self._followers) - set(mine):
            # It has ended a moment ago, or another control plane took it while this one was away.
            taken = await self._database.read(_owner_of, operation_id) not in ("", self._owner)
            if taken and (follower := self._followers.get(operation_id)) is not None:
                follower.cancel()

    async def _assign(self) -> None:
        begun = True
        while begun:
            decided = await self._database.write(
                assign_round, self._owner, self._lease_seconds, self._full.ids
            )
            for operation_id in decided.moving:
                self._parts.log.wake(operation_id)
            for each in decided.begun:
                self._parts.log.wake(each.operation_id)
                self._follow(each.operation_id, each.attempt)
            begun = bool(decided.begun)

    async def _ask_full_trainers(self) -> None:
        """A trainer that refused for want of room is given work again once it has some."""
        if self._full.ids and (self._asking is None or self._asking.done()):
            self._asking = self._beside(self._full.ask_round())

    async def _forget(self) -> None:
        """Lets trainers drop the events of attempts that are over; beside the rounds."""
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = self._beside(self._forgetter.forget_round())

    async def _seconds_to_next_due(self) -> float:
        try:
            due = await self._database.read(queue.next_due_time, State.PENDING, times.now())
        except EverstepError:
            return ROUND_SECONDS
        return ROUND_SECONDS if due is None else max(0.01, (due - times.now()) / times.SECOND)

    def _follow(self, operation_id: str, number: int) -> None:
        if operation_id in self._followers:
            return
        follower = AttemptFollower(operation_id, number, self._parts)
        task = asyncio.create_task(follower.run(), name=f"follow {operation_id} {number}")
        self._followers[operation_id] = task
        task.add_done_callback(lambda ended: self._followed(operation_id, ended))

    def _followed(self, operation_id: str, task: asyncio.Task[None]) -> None:
        self._followers.pop(operation_id, None)
        if not task.cancelled() and task.exception() is not None:
            # The next round takes it up again; not at once, lest it fail without a pause.
            _log.error("follower failed", operation_id=operation_id, exc_info=task.exception())
            return
        self.wake()

    def _committed(self, operation_id: str) -> None:
        if operation_id not in self._retaining:
            self._retaining.add(operation_id)
            self._beside(self._retain(operation_id))

    async def _retain(self, operation_id: str) -> None:
        self._retaining.discard(operation_id)
        await self._checkpoints.apply_retention(operation_id)

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._logged(work))
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)
        return task

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EverstepError as error:
            _log.warning("work beside the rounds failed", error=error.message)
        except Exception:
            _log.exception("work beside the rounds failed")


def _take_over(
    connection: Connection, operation_id: str, owner: str, lease_seconds: float
) -> int | None:
    """The number of the attempt that is now followed from here, if it is."""
    taken = operations.take_over(
        connection,
        operation_id,
        _ATTEMPT_STATES,
        owner,
        times.now(),
        times.after(lease_seconds),
    )
    operation = operations.find(connection, operation_id) if taken else None
    return None if operation is None else operation.attempt


def _owner_of(connection: Connection, operation_id: str) -> str:
    operation = operations.find(connection, operation_id)
    return "" if operation is None else operation.owner


def _not_running(attempt: AttemptRecord) -> EverstepError:
    return EverstepError(
        Reason.NOT_RUNNING,
        f"attempt {attempt.number} of operation {attempt.operation_id} does not train right now; "
        "try again when it does",
    )
