"""Moving trainings away from trainers that are drained: where to, and that they are to go."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from control_plane import times
from control_plane.database import attempts, events, operations, queue, trainers
from control_plane.database.operations import OperationRecord
from control_plane.database.trainers import TrainerRecord
from control_plane.placement import Demand, TrainerPool
from control_plane.states import State
from control_plane.transitions import note_event


def wanted(connection: Connection) -> bool:
    """Whether there is anything to move, or room kept for one that moves."""
    load = attempts.load_by_trainer(connection)
    leaving = _leaving(trainers.every(connection), times.now())
    return any(load.get(trainer_id) for trainer_id in leaving) or bool(
        queue.moving(connection, [State.RUNNING])
    )


def plan_moves(connection: Connection, pool: TrainerPool) -> list[str]:
    """Finds places for what drained trainers run, and keeps them; the trainers are then told.

    A training stays where it is until a trainer in the same environment has room for it: it is
    never stopped in order to wait. What moves was ahead of the queue already, and so it is again.

    Args:
        connection: Of the transaction, in which the pool was locked.
        pool: The trainers; it knows of the room that is kept afterwards.

    Returns:
        The operations that move from now on; their logs say so.
    """
    _give_up_lost_places(connection, pool)
    moved = []
    leaving = _leaving(pool.known, times.now())
    for operation in queue.on_trainers(connection, State.RUNNING, leaving):
        if not operation.moving_to and _plan_move(connection, operation, pool):
            moved.append(operation.operation_id)
    return moved


def _leaving(known: Sequence[TrainerRecord], now: int) -> list[str]:
    """Those that are to be emptied; one that stops does that by itself."""
    return [
        trainer.trainer_id
        for trainer in known
        if trainer.drained and trainer.alive(now) and not trainer.stopping
    ]


def _give_up_lost_places(connection: Connection, pool: TrainerPool) -> None:
    """Where the trainer that kept room takes no work any more, another one is to be found."""
    available = {trainer.trainer_id for trainer in pool.available}
    for moving in queue.moving(connection, [State.RUNNING]):
        if moving.moving_to not in available:
            operations.set_values(connection, moving.operation_id, moving_to="")
            pool.give_back(moving.moving_to)


def _plan_move(connection: Connection, operation: OperationRecord, pool: TrainerPool) -> bool:
    attempt = attempts.find(connection, operation.operation_id, operation.attempt)
    if attempt is None:
        return False
    demand = Demand.of(operation.trainer_labels, attempt.environment)
    free = [trainer for trainer in pool.alike(demand) if pool.has_room(trainer)]
    if not free:
        return False
    target = max(free, key=lambda trainer: (pool.free(trainer), trainer.trainer_id))
    pool.take(target.trainer_id)
    operations.set_values(connection, operation.operation_id, moving_to=target.trainer_id)
    message = (
        f"trainer {attempt.trainer_id} is drained: it is asked to hand over to trainer "
        f"{target.trainer_id}, which keeps room"
    )
    note = note_event("MOVING", message, attempt.number)
    events.append(connection, operation.operation_id, [note])
    return True
