"""Lets trainers drop the events of attempts that are over."""

from __future__ import annotations

from typing import Final

import grpc
import structlog

from control_plane import times
from control_plane.database import attempts, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.session import Database
from control_plane.trainer_channels import SIDE_CALL_SECONDS, TrainerChannels
from everstep.errors import Reason
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import CancelTrainingRequest, ForgetTrainingRequest

_log = structlog.get_logger(__name__)

#: Attempts that trainers are told to forget in one round.
FORGOTTEN_AT_A_TIME: Final = 50


class AttemptForgetter:
    """Tells trainers which attempts are stored to their end."""

    def __init__(self, database: Database, channels: TrainerChannels) -> None:
        self._database = database
        self._channels = channels

    async def forget_round(self) -> None:
        """Tells of the oldest; a trainer that does not answer is told in another round."""
        now = times.now()
        known = await self._database.read(trainers.every)
        addresses = {trainer.trainer_id: trainer.address for trainer in known if trainer.alive(now)}
        over = await self._database.read(attempts.unforgotten, list(addresses), FORGOTTEN_AT_A_TIME)
        for attempt in over:
            try:
                await self._forget(attempt, addresses[attempt.trainer_id])
            except grpc.aio.AioRpcError as failure:
                _log.info("trainer keeps an attempt", error=error_from_call(failure).message)

    async def _forget(self, attempt: AttemptRecord, address: str) -> None:
        stub = self._channels.stub(address)
        operation_id, number = attempt.operation_id, attempt.number
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
