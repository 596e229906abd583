"""Follows one attempt: calls its trainer, stores what it says, to its last word."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from sqlalchemy import Connection

from control_plane.database import attempts, operations, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from control_plane.database.session import Database
from control_plane.database.trainers import TrainerRecord
from control_plane.event_log import EventLog
from control_plane.hearing import Hearing
from control_plane.leases import TrainerLeases
from control_plane.liveness import Liveness
from control_plane.progress_stream import ProgressStream
from control_plane.states import ATTEMPT_STATES, State
from control_plane.stop_relay import StopRelay
from control_plane.trainer_channels import TrainerChannels
from everstep.errors import EverstepError, Reason
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import (
    ResumeTrainingRequest,
    StartTrainingRequest,
    WatchTrainingRequest,
)
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.progress_pb2 import TrainingPosition, TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy

if TYPE_CHECKING:
    from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

_log = structlog.get_logger(__name__)

#: Seconds between tries to reach a trainer: the first, and the longest.
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 3.0
#: A lease has ended for certain so long after its end.
LEASE_END_SECONDS: Final = 0.02
#: Seconds between stored positions, and the part of the whole after which one is stored earlier:
#: step metrics come much more often.
POSITION_SECONDS: Final = 1.0
POSITION_PART: Final = 0.01
#: Seconds between looks at the trainer's lease while its stream is silent.
SILENCE_SECONDS: Final = 1.0
#: Errors in a row, with the trainer answering, after which the attempt is given up.
MAX_ERRORS: Final = 10

#: The connection is at fault, or the trainer about to go: the training may well be running.
_BROKEN: Final = frozenset(
    {Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.CALL_CANCELLED}
)
#: The trainer answered, and may answer otherwise the next time.
_PASSING: Final = frozenset(
    {Reason.INTERNAL, Reason.UNIMPLEMENTED, Reason.STORE_UNAVAILABLE, Reason.MESSAGE_TOO_LARGE}
)


@dataclass(frozen=True)
class Followed:
    """An attempt that is open, with all that a call to its trainer takes."""

    operation: OperationRecord
    attempt: AttemptRecord
    trainer: TrainerRecord | None


@dataclass(frozen=True)
class FollowerParts:
    """What every follower works with."""

    database: Database
    log: EventLog
    channels: TrainerChannels
    leases: TrainerLeases
    #: How long a trainer that was reached before is not given up while its heartbeat comes.
    unreachable_seconds: float
    #: Called with the operation when a checkpoint was registered.
    committed: Callable[[str], None]
    #: Called with the trainer that refused an attempt for want of room.
    refused: Callable[[str], None]


class AttemptFollower:
    """Brings an attempt's words into the log, whatever breaks in between.

    The stream is a view: when it breaks, it is opened again after the last stored event, until the
    trainer's lease has ended. Then the attempt is closed as lost.
    """

    def __init__(self, operation_id: str, number: int, parts: FollowerParts) -> None:
        self._operation_id = operation_id
        self._number = number
        self._parts = parts
        self._log = _log.bind(operation_id=operation_id, attempt=number)
        self._hearing = Hearing(parts.leases.lease_seconds, parts.unreachable_seconds)
        #: What is stored of it.
        self._liveness = Liveness.HEARD
        self._position_stored = 0.0
        #: How far the operation is, as stored.
        self._fraction = 0.0
        self._errors = 0
        self._retry_seconds = FIRST_RETRY_SECONDS

    async def run(self) -> None:
        """Returns when the attempt is over, or another one has taken its place."""
        relay = StopRelay(
            self._operation_id, self._number, self._parts.database, self._parts.channels
        )
        relaying = asyncio.create_task(relay.run())
        try:
            while True:
                followed = await self._parts.database.read(
                    load_followed, self._operation_id, self._number
                )
                if followed is None or await self._follow_once(followed):
                    return
                assert followed.trainer is not None
                await asyncio.sleep(self._pause(followed.trainer))
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)

    def _pause(self, trainer: TrainerRecord) -> float:
        """The seconds until the next try, which comes no later than the end of the lease."""
        pause = self._retry_seconds * random.uniform(0.8, 1.2)
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)
        lease = self._parts.leases.remaining_seconds(trainer)
        return min(pause, max(FIRST_RETRY_SECONDS, lease + LEASE_END_SECONDS))

    async def _follow_once(self, followed: Followed) -> bool:
        """Opens the stream and stores what comes; True when the attempt is over."""
        if followed.trainer is None:
            return await self._end(
                EverstepError(Reason.TRAINER_NOT_FOUND, "its trainer is not registered any more")
            )
        self._hearing.follows(followed.attempt)
        self._liveness = Liveness(followed.attempt.liveness)
        try:
            if await self._store_stream(followed, followed.trainer):
                return True
        except grpc.aio.AioRpcError as failure:
            return await self._after_error(followed, error_from_call(failure))
        except EverstepError as error:
            return await self._after_error(followed, error)
        return await self._after_error(
            followed, EverstepError(Reason.INTERNAL, "its stream ended without a last word")
        )

    async def _store_stream(self, followed: Followed, trainer: TrainerRecord) -> bool:
        call = _open_call(self._parts.channels.stub(trainer.address), followed)
        self._fraction = TrainingPosition.FromString(followed.operation.position).fraction
        async with ProgressStream(call, self._hearing.opened) as stream:
            while True:
                words = await stream.next_words(SILENCE_SECONDS)
                if words is None:
                    return False
                if not words:
                    await self._check_silence(trainer.trainer_id)
                    continue
                self._hearing.heard(words)
                if await self._store(words):
                    return True
                await self._store_liveness()
                self._errors = 0
                self._retry_seconds = FIRST_RETRY_SECONDS

    async def _store(self, words: list[TrainingProgress]) -> bool:
        """Stores words in their order; True when the last one was among them."""
        durable = [word for word in words if word.index]
        if durable:
            stored = await self._parts.log.append(self._operation_id, self._number, durable)
            if stored.committed:
                self._parts.committed(self._operation_id)
            if stored.over:
                return True
            if stored.fraction is not None:
                self._fraction = stored.fraction
        for word in _newest_transients(words):
            await self._show(word)
        return False

    async def _show(self, word: TrainingProgress) -> None:
        """Shows a transient event; no farther than is stored, so that it never goes back."""
        due = time.monotonic() - self._position_stored >= POSITION_SECONDS
        if due or word.position.fraction >= self._fraction + POSITION_PART:
            self._position_stored = time.monotonic()
            self._fraction = await self._parts.log.remember_position(
                self._operation_id, self._number, word
            )
        word.position.fraction = self._fraction
        self._parts.log.show(self._operation_id, word)

    async def _check_silence(self, trainer_id: str) -> None:
        trainer = await self._parts.database.read(trainers.find, trainer_id)
        leases = self._parts.leases
        if self._hearing.unreached_seconds > leases.lease_seconds and leases.has_ended(trainer):
            raise EverstepError(
                Reason.SERVICE_UNAVAILABLE, "neither its stream nor its heartbeat is heard"
            )
        await self._store_liveness()

    async def _store_liveness(self) -> None:
        liveness, seconds = self._hearing.liveness()
        if liveness is not self._liveness:
            self._liveness = liveness
            await self._parts.log.hear(self._operation_id, self._number, liveness, seconds)

    async def _after_error(self, followed: Followed, error: EverstepError) -> bool:
        """Ends the attempt if this error does; else it is tried again."""
        assert followed.trainer is not None
        if error.reason in _PASSING:
            self._errors += 1
            if self._errors < MAX_ERRORS:
                self._log.warning("trainer failed", error=error.message, reason=error.reason)
                return False
            return await self._end(error)
        if error.reason not in _BROKEN and error.reason is not Reason.DATABASE_UNAVAILABLE:
            if error.reason in (Reason.NO_CAPACITY, Reason.DRAINING):
                self._parts.refused(followed.trainer.trainer_id)
            return await self._end(error)
        trainer = await self._parts.database.read(trainers.find, followed.trainer.trainer_id)
        if self._parts.leases.has_ended(trainer):
            return await self._end(
                EverstepError(
                    Reason.SERVICE_UNAVAILABLE,
                    f"trainer {followed.trainer.trainer_id} is not heard any more",
                )
            )
        self._hearing.broke()
        await self._store_liveness()
        if self._hearing.is_given_up:
            return await self._end(
                EverstepError(
                    Reason.SERVICE_UNAVAILABLE,
                    f"trainer {followed.trainer.trainer_id} says it is there but cannot be reached "
                    f"at {followed.trainer.address}; check EVERSTEP_ADVERTISE ({error.message})",
                )
            )
        return False

    async def _end(self, error: EverstepError) -> bool:
        await self._parts.log.end(self._operation_id, self._number, error)
        self._log.warning("attempt ended", reason=error.reason, error=error.message)
        return True


def load_followed(connection: Connection, operation_id: str, number: int) -> Followed | None:
    """The attempt as it is now; None when it is over or replaced."""
    operation = operations.find(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None or attempt is None or attempt.ending or operation.attempt != number:
        return None
    if operation.state not in ATTEMPT_STATES:
        return None
    return Followed(operation, attempt, trainers.find(connection, attempt.trainer_id))


def _newest_transients(words: Sequence[TrainingProgress]) -> list[TrainingProgress]:
    """Of those after the last durable event the newest of each kind, in order."""
    newest: dict[str | None, TrainingProgress] = {}
    for word in words:
        if word.index:
            newest.clear()
            continue
        kind = word.WhichOneof("event")
        newest.pop(kind, None)
        newest[kind] = word
    return list(newest.values())


def _open_call(
    stub: TrainerServiceAsyncStub, followed: Followed
) -> grpc.aio.UnaryStreamCall[Any, TrainingProgress]:
    """Watches an attempt that was heard before; else begins it, which joins one that runs."""
    operation, attempt = followed.operation, followed.attempt
    # One that is to be cancelled is not begun any more.
    if attempt.cursor or operation.state == State.CANCELLING:
        return stub.WatchTraining(
            WatchTrainingRequest(
                operation_id=attempt.operation_id,
                attempt=attempt.number,
                after_index=attempt.cursor,
                batches=True,
            )
        )
    strategy = TrainingStrategy.FromString(operation.strategy)
    if attempt.checkpoint is None:
        return stub.StartTraining(
            StartTrainingRequest(
                operation_id=attempt.operation_id,
                attempt=attempt.number,
                strategy=strategy,
                batches=True,
            )
        )
    checkpoint = CheckpointReference.FromString(attempt.checkpoint)
    own = f"operations/{attempt.operation_id}/"
    return stub.ResumeTraining(
        ResumeTrainingRequest(
            operation_id=attempt.operation_id,
            attempt=attempt.number,
            strategy=strategy,
            checkpoint=checkpoint,
            overrides=StrategyOverrides.FromString(attempt.overrides),
            fork=not checkpoint.manifest_key.startswith(own),
            batches=True,
        )
    )
