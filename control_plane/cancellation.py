"""Brings the wish to stop to the trainer, until the trainer has heard it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import grpc
import structlog
from sqlalchemy import Connection

from control_plane.database import attempts, operations, trainers
from control_plane.database.session import Database
from control_plane.states import State
from control_plane.trainer_channels import TrainerChannels
from everstep.errors import EverstepError
from everstep.rpc.options import UNARY_DEADLINE_SECONDS
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import CancelTrainingRequest

_log = structlog.get_logger(__name__)

#: Seconds between looks at the operation, and between tries.
LOOK_SECONDS: Final = 0.25
#: Seconds after which a wish that was heard is said again: the trainer may have been restarted.
REPEAT_SECONDS: Final = 5.0


class CancellationRelay:
    """Tells an attempt's trainer to stop as soon as its operation is CANCELLING."""

    def __init__(
        self, operation_id: str, number: int, database: Database, channels: TrainerChannels
    ) -> None:
        self._operation_id = operation_id
        self._number = number
        self._database = database
        self._channels = channels

    async def run(self) -> None:
        """Runs until cancelled."""
        heard: bool | None = None
        heard_at = 0.0
        while True:
            try:
                wish = await self._database.read(_read_wish, self._operation_id, self._number)
                if wish is not None:
                    address, discard = wish
                    if heard != discard or time.monotonic() - heard_at >= REPEAT_SECONDS:
                        await self._say(address, discard)
                        heard, heard_at = discard, time.monotonic()
            except grpc.aio.AioRpcError as failure:
                _log.info(
                    "trainer has not heard the cancellation yet",
                    operation_id=self._operation_id,
                    error=error_from_call(failure).message,
                )
            except EverstepError as error:
                _log.warning("cancellation not read", error=error.message)
            await asyncio.sleep(LOOK_SECONDS)

    async def _say(self, address: str, discard: bool) -> None:
        await self._channels.stub(address).CancelTraining(
            CancelTrainingRequest(
                operation_id=self._operation_id, attempt=self._number, discard=discard
            ),
            timeout=UNARY_DEADLINE_SECONDS,
        )


def _read_wish(connection: Connection, operation_id: str, number: int) -> tuple[str, bool] | None:
    """The trainer's address and whether to discard; None when nobody wishes a stop."""
    operation = operations.find(connection, operation_id)
    if operation is None or operation.state != State.CANCELLING or operation.attempt != number:
        return None
    attempt = attempts.find(connection, operation_id, number)
    trainer = None if attempt is None else trainers.find(connection, attempt.trainer_id)
    return None if trainer is None else (trainer.address, operation.discard)
