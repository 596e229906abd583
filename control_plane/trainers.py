"""Who can train: registrations and their leases."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from sqlalchemy import Connection

from control_plane import times
from control_plane.database import attempts, trainers
from control_plane.database.attempts import OpenAttempt
from control_plane.database.session import Database
from control_plane.database.trainers import TrainerRecord
from control_plane.placement import labels_text, parse_labels
from everstep.control.v1.trainers_pb2 import (
    RegisterTrainerRequest,
    RunningAttempt,
    Trainer,
    TrainerEnvironment,
)
from everstep.errors import EverstepError, Reason

_log = structlog.get_logger(__name__)


class Trainers:
    """The trainers that announced themselves.

    Args:
        database: Where they are kept.
        lease_seconds: How long one counts as alive after it was last heard.
        queue_changed: Called when the dispatcher may have something to do.
    """

    def __init__(
        self, database: Database, lease_seconds: float, queue_changed: Callable[[], None]
    ) -> None:
        self._database = database
        self.lease_seconds = lease_seconds
        self._queue_changed = queue_changed

    async def register(self, request: RegisterTrainerRequest) -> None:
        """Renews a trainer's lease; a new one is added."""
        is_new = await self._database.write(_register, request, self.lease_seconds)
        if is_new:
            _log.info("trainer is here", trainer_id=request.trainer_id, address=request.address)
            self._queue_changed()

    async def list(self) -> list[Trainer]:
        """All trainers that were ever heard, by id."""
        return await self._database.read(_list)

    async def drain(self, trainer_id: str, undo: bool) -> Trainer:
        """Gives a trainer no new work and moves what it runs, or gives it work again.

        Raises:
            EverstepError: TRAINER_NOT_FOUND.
        """
        trainer = await self._database.write(_drain, trainer_id, undo)
        self._queue_changed()
        return trainer


def trainer_not_found(trainer_id: str) -> EverstepError:
    """TRAINER_NOT_FOUND, in the words that every call uses."""
    return EverstepError(
        Reason.TRAINER_NOT_FOUND,
        f"there is no trainer {trainer_id}; ListTrainers names those that there are",
        metadata={"trainer_id": trainer_id},
    )


def _register(
    connection: Connection, request: RegisterTrainerRequest, lease_seconds: float
) -> bool:
    """Returns whether the trainer takes work from now on, and did not before."""
    now = times.now()
    labels = labels_text(request.labels)
    before = trainers.find(connection, request.trainer_id)
    trainers.register(
        connection,
        trainer_id=request.trainer_id,
        address=request.address,
        capacity=request.capacity,
        environment=request.environment.SerializeToString(deterministic=True),
        lease_expire_time=times.after(lease_seconds),
        stopping=request.draining,
        labels=labels,
        heard_time=now,
    )
    after = trainers.find(connection, request.trainer_id)
    assert after is not None
    return after.takes_work(now) and (
        before is None
        or not before.takes_work(now)
        or before.capacity < after.capacity
        or before.labels != labels
    )


def _list(connection: Connection) -> list[Trainer]:
    running = attempts.open_by_trainer(connection)
    return [
        _message(record, running.get(record.trainer_id, []))
        for record in trainers.every(connection)
    ]


def _drain(connection: Connection, trainer_id: str, undo: bool) -> Trainer:
    if not trainers.set_values(connection, trainer_id, drained=not undo):
        raise trainer_not_found(trainer_id)
    record = trainers.find(connection, trainer_id)
    assert record is not None
    return _message(record, attempts.open_by_trainer(connection).get(trainer_id, []))


def _message(record: TrainerRecord, running: list[OpenAttempt]) -> Trainer:
    message = Trainer(
        trainer_id=record.trainer_id,
        address=record.address,
        capacity=record.capacity,
        environment=TrainerEnvironment.FromString(record.environment),
        lease_expire_time=times.timestamp(record.lease_expire_time),
        alive=record.alive(times.now()),
        draining=record.stopping or record.drained,
        operation_ids=[attempt.operation_id for attempt in running],
        labels=parse_labels(record.labels),
        running=[_running(attempt) for attempt in running],
    )
    if record.heard_time:
        message.last_heard_time.CopyFrom(times.timestamp(record.heard_time))
    return message


def _running(attempt: OpenAttempt) -> RunningAttempt:
    message = RunningAttempt(
        operation_id=attempt.operation_id,
        display_name=attempt.display_name,
        attempt=attempt.number,
        start_time=times.timestamp(attempt.start_time),
        moving_to=attempt.moving_to,
    )
    message.position.ParseFromString(attempt.position)
    return message
