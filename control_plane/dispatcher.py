"""Gives operations to trainers, follows their attempts, and takes up those that were left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from sqlalchemy import Connection

from control_plane import times
from control_plane.assignment import assign_next
from control_plane.attempt_ends import AttemptEnd
from control_plane.attempt_follower import AttemptFollower, FollowerParts
from control_plane.checkpoints import Checkpoints
from control_plane.database import attempts, operations, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.late_words import note_late_words, stop_and_hear
from control_plane.leases import TrainerLeases
from control_plane.states import ATTEMPT_STATES, State
from control_plane.trainer_channels import TrainerChannels
from everstep.errors import EverstepError, Reason
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import (
    CancelTrainingRequest,
    CheckpointTrainingRequest,
    ForgetTrainingRequest,
    ListTrainingsRequest,
)

if TYPE_CHECKING:
    from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

_log = structlog.get_logger(__name__)

#: Seconds between rounds when nothing wakes the dispatcher.
ROUND_SECONDS: Final = 1.0
#: Seconds a trainer has for a question on the side.
SIDE_CALL_SECONDS: Final = 3.0
#: Attempts that trainers are told to forget in one round.
FORGOTTEN_AT_A_TIME: Final = 50
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
        self._leases = TrainerLeases(lease_seconds)
        self._channels = TrainerChannels()
        self._parts = FollowerParts(
            database,
            log,
            self._channels,
            self._leases,
            unreachable_seconds,
            self._committed,
            self._refused,
        )
        self._woken = asyncio.Event()
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._retaining: set[str] = set()
        self._full: set[str] = set()
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
            for step in (self._take_over, self._ask_full_trainers, self._assign, self._forget):
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
            if await self._database.read(_owner_of, operation_id) not in ("", self._owner):
                self._followers[operation_id].cancel()

    async def _assign(self) -> None:
        while True:
            operation_id = await self._database.write(
                assign_next, self._owner, self._lease_seconds, frozenset(self._full)
            )
            if operation_id is None:
                return
            self._parts.log.wake(operation_id)
            operation = await self._database.read(operations.find, operation_id)
            if operation is not None:
                self._follow(operation_id, operation.attempt)

    async def _ask_full_trainers(self) -> None:
        """A trainer that refused for want of room is given work again once it has some."""
        if self._full and (self._asking is None or self._asking.done()):
            self._asking = self._beside(self._ask_round())

    async def _ask_round(self) -> None:
        for trainer_id in tuple(self._full):
            trainer = await self._database.read(trainers.find, trainer_id)
            if trainer is None or not trainer.alive(times.now()):
                self._full.discard(trainer_id)
                continue
            try:
                answer = await self._channels.stub(trainer.address).ListTrainings(
                    ListTrainingsRequest(), timeout=SIDE_CALL_SECONDS
                )
            except grpc.aio.AioRpcError:
                continue
            running = sum(not training.finished for training in answer.trainings)
            if running < answer.capacity:
                self._full.discard(trainer_id)
                self.wake()

    async def _forget(self) -> None:
        """Lets trainers drop the events of attempts that are over; beside the rounds."""
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = self._beside(self._forget_round())

    async def _forget_round(self) -> None:
        now = times.now()
        known = await self._database.read(trainers.every)
        addresses = {trainer.trainer_id: trainer.address for trainer in known if trainer.alive(now)}
        over = await self._database.read(attempts.unforgotten, list(addresses), FORGOTTEN_AT_A_TIME)
        for attempt in over:
            try:
                await self._forget_attempt(attempt, addresses[attempt.trainer_id])
            except grpc.aio.AioRpcError as failure:
                _log.info("trainer keeps an attempt", error=error_from_call(failure).message)

    async def _forget_attempt(self, attempt: AttemptRecord, address: str) -> None:
        stub = self._channels.stub(address)
        operation_id, number = attempt.operation_id, attempt.number
        if attempt.ending == AttemptEnd.LOST:
            await self._stop_lost(stub, attempt)
        try:
            await stub.ForgetTraining(
                ForgetTrainingRequest(operation_id=operation_id, attempt=number),
                timeout=SIDE_CALL_SECONDS,
            )
        except grpc.aio.AioRpcError as failure:
            if error_from_call(failure).reason is not Reason.NOT_FINISHED:
                raise
            # It was given up here and runs there: nobody wants its outcome.
            await stub.CancelTraining(
                CancelTrainingRequest(operation_id=operation_id, attempt=number, discard=True),
                timeout=SIDE_CALL_SECONDS,
            )
            return
        await self._database.write(attempts.set_forgotten, operation_id, number)

    async def _stop_lost(self, stub: TrainerServiceAsyncStub, attempt: AttemptRecord) -> None:
        """It may train still, and have said what nobody has heard."""
        try:
            words = await stop_and_hear(stub, attempt, SIDE_CALL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            if error_from_call(failure).reason is not Reason.TRAINING_NOT_FOUND:
                raise
            return
        if await self._database.write(note_late_words, attempt.operation_id, attempt.number, words):
            self._parts.log.wake(attempt.operation_id)

    async def _seconds_to_next_due(self) -> float:
        try:
            due = await self._database.read(operations.next_due_time, State.PENDING, times.now())
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

    def _refused(self, trainer_id: str) -> None:
        self._full.add(trainer_id)

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
