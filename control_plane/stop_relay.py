"""Brings the wish that a training stops to its trainer, until the trainer has heard it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import grpc
import structlog
from sqlalchemy import Connection

from control_plane.database import attempts, operations, trainers
from control_plane.database.operations import OperationRecord
from control_plane.database.session import Database
from control_plane.states import State
from control_plane.trainer_channels import TrainerChannels
from everstep.errors import EverstepError
from everstep.rpc.options import UNARY_DEADLINE_SECONDS
from everstep.rpc.status import error_from_call
from everstep.trainer.v1.trainer_pb2 import CancelTrainingRequest, HandOverTrainingRequest

_log = structlog.get_logger(__name__)

#: Seconds between looks at the operation, and between tries.
LOOK_SECONDS: Final = 0.25
#: Seconds after which a wish that was heard is said again: the trainer may have been restarted.
REPEAT_SECONDS: Final = 5.0


class Stop(Enum):
    """How a training is to stop."""

    #: With a checkpoint.
    CANCEL = auto()
    #: Without one.
    DISCARD = auto()
    #: With one, for another trainer to go on.
    HAND_OVER = auto()


@dataclass(frozen=True)
class Wish:
    """What is to be said, and where."""

    address: str
    stop: Stop


class StopRelay:
    """Tells an attempt's trainer to stop, as soon as its operation is CANCELLING or to move."""

    def __init__(
        self, operation_id: str, number: int, database: Database, channels: TrainerChannels
    ) -> None:
        self._operation_id = operation_id
        self._number = number
        self._database = database
        self._channels = channels

    async def run(self) -> None:
        """Runs until cancelled."""
        heard: Stop | None = None
        heard_at = 0.0
        while True:
            try:
                wish = await self._database.read(_read_wish, self._operation_id, self._number)
                due = time.monotonic() - heard_at >= REPEAT_SECONDS
                if wish is not None and (due or heard is not wish.stop):
                    await self._say(wish)
                    heard, heard_at = wish.stop, time.monotonic()
            except grpc.aio.AioRpcError as failure:
                _log.info(
                    "trainer has not heard yet that a training is to stop",
                    operation_id=self._operation_id,
                    error=error_from_call(failure).message,
                )
            except EverstepError as error:
                _log.warning("the wish to stop was not read", error=error.message)
            await asyncio.sleep(LOOK_SECONDS)

    async def _say(self, wish: Wish) -> None:
        stub = self._channels.stub(wish.address)
        if wish.stop is Stop.HAND_OVER:
            await stub.HandOverTraining(
                HandOverTrainingRequest(operation_id=self._operation_id, attempt=self._number),
                timeout=UNARY_DEADLINE_SECONDS,
            )
            return
        await stub.CancelTraining(
            CancelTrainingRequest(
                operation_id=self._operation_id,
                attempt=self._number,
                discard=wish.stop is Stop.DISCARD,
            ),
            timeout=UNARY_DEADLINE_SECONDS,
        )


def _read_wish(connection: Connection, operation_id: str, number: int) -> Wish | None:
    """None when nobody wishes that the attempt stops."""
    operation = operations.find(connection, operation_id)
    if operation is None or operation.attempt != number:
        return None
    stop = _stop(operation)
    attempt = None if stop is None else attempts.find(connection, operation_id, number)
    trainer = None if attempt is None else trainers.find(connection, attempt.trainer_id)
    return None if stop is None or trainer is None else Wish(trainer.address, stop)


def _stop(operation: OperationRecord) -> Stop | None:
    if operation.state == State.CANCELLING:
        return Stop.DISCARD if operation.discard else Stop.CANCEL
    if operation.state == State.RUNNING and operation.moving_to:
        return Stop.HAND_OVER
    return None
