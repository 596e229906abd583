"""Lets trainers drop the events of attempts that are over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
import structlog

from control_plane import times
from control_plane.attempt_ends import AttemptEnd
from control_plane.database import attempts, deletions, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.deletions import Orphan
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.late_words import note_late_words, stop_and_hear
from control_plane.trainer_channels import SIDE_CALL_SECONDS, TrainerChannels
from everstep.errors import Reason
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import CancelTrainingRequest, ForgetTrainingRequest

if TYPE_CHECKING:
    from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

_log = structlog.get_logger(__name__)

#: Attempts that trainers are told to forget in one round.
FORGOTTEN_AT_A_TIME: Final = 50


class AttemptForgetter:
    """Tells trainers which attempts are stored to their end.

    Args:
        database: Which attempts are over.
        channels: To the trainers.
        log: Where it is noted what a lost attempt said after its end.
    """

    def __init__(self, database: Database, channels: TrainerChannels, log: EventLog) -> None:
        self._database = database
        self._channels = channels
        self._log = log

    async def forget_round(self) -> None:
        """Tells of the oldest; a trainer that does not answer is told in another round."""
        now = times.now()
        known = await self._database.read(trainers.every)
        addresses = {trainer.trainer_id: trainer.address for trainer in known if trainer.alive(now)}
        limit = FORGOTTEN_AT_A_TIME
        over = await self._database.read(attempts.unforgotten, list(addresses), limit)
        orphaned = await self._database.read(deletions.orphans, list(addresses), limit)
        kept: list[AttemptRecord | Orphan] = [*over, *orphaned]
        for attempt in kept:
            stub = self._channels.stub(addresses[attempt.trainer_id])
            try:
                if isinstance(attempt, Orphan):
                    await self._forget_orphan(stub, attempt)
                else:
                    await self._forget(stub, attempt)
            except grpc.aio.AioRpcError as failure:
                _log.info("trainer keeps an attempt", error=error_from_call(failure).message)

    async def _forget(self, stub: TrainerServiceAsyncStub, attempt: AttemptRecord) -> None:
        if attempt.ending == AttemptEnd.LOST:
            await self._stop_lost(stub, attempt)
        if await _has_forgotten(stub, attempt.operation_id, attempt.number):
            await self._database.write(attempts.set_forgotten, attempt.operation_id, attempt.number)

    async def _forget_orphan(self, stub: TrainerServiceAsyncStub, orphan: Orphan) -> None:
        if await _has_forgotten(stub, orphan.operation_id, orphan.number):
            await self._database.write(deletions.remove_orphan, orphan)

    async def _stop_lost(self, stub: TrainerServiceAsyncStub, attempt: AttemptRecord) -> None:
        """It may train still, and have said what nobody has heard."""
        try:
            words = await stop_and_hear(stub, attempt, SIDE_CALL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            if error_from_call(failure).reason is not Reason.TRAINING_NOT_FOUND:
                raise
            return
        if await self._database.write(note_late_words, attempt.operation_id, attempt.number, words):
            self._log.wake(attempt.operation_id)


async def _has_forgotten(stub: TrainerServiceAsyncStub, operation_id: str, number: int) -> bool:
    """Tells a trainer to forget an attempt; one that it runs still is stopped first."""
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
        return False
    return True
