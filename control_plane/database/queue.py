"""The queue: operations that wait for a trainer, and the room that is kept for some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from control_plane.database.operations import OperationRecord
from control_plane.database.schema import attempts, operations


@dataclass(frozen=True)
class DemandRecord:
    """What operations in the queue ask of a trainer; many ask the same."""

    demand: str
    trainer_labels: str
    #: Of the newest attempt; None before the first.
    environment: bytes | None


@dataclass(frozen=True)
class MovingRecord:
    """An operation for which a trainer keeps room."""

    operation_id: str
    state: str
    moving_to: str


def any_due(connection: Connection, state: str, now: int) -> bool:
    """Whether an operation in a state is due."""
    query = select(operations.c.operation_id).where(
        operations.c.state == state, operations.c.due_time <= now
    )
    return connection.execute(query.limit(1)).first() is not None


def demands(connection: Connection, state: str, now: int) -> list[DemandRecord]:
    """What the operations in a state that are due ask of trainers: each demand once.

    In the order of the first operation of each.
    """
    heads = (
        select(
            func.min(operations.c.operation_id).label("operation_id"),
            func.min(operations.c.queue_time).label("queue_time"),
        )
        .where(operations.c.state == state, operations.c.due_time <= now)
        .group_by(operations.c.demand)
        .subquery()
    )
    newest_attempt = (attempts.c.operation_id == operations.c.operation_id) & (
        attempts.c.number == operations.c.attempt
    )
    rows = connection.execute(
        select(operations.c.demand, operations.c.trainer_labels, attempts.c.environment)
        .select_from(
            heads.join(operations, operations.c.operation_id == heads.c.operation_id).outerjoin(
                attempts, newest_attempt
            )
        )
        .order_by(heads.c.queue_time)
    )
    return [DemandRecord(**row._mapping) for row in rows]


def next_ids(
    connection: Connection, state: str, now: int, wanted: Sequence[str], limit: int
) -> list[str]:
    """The first operations in a state that are due and make one of these demands."""
    rows = connection.execute(
        select(operations.c.operation_id)
        .where(
            operations.c.state == state,
            operations.c.demand.in_(wanted),
            operations.c.due_time <= now,
        )
        .order_by(operations.c.queue_time, operations.c.operation_id)
        .limit(limit)
    )
    return [row.operation_id for row in rows]


def lock(connection: Connection, state: str, operation_ids: Sequence[str]) -> list[OperationRecord]:
    """Those of the operations that are in a state, in order, locked; those locked elsewhere not."""
    rows = connection.execute(
        select(operations)
        .where(operations.c.operation_id.in_(operation_ids), operations.c.state == state)
        .order_by(operations.c.queue_time, operations.c.operation_id)
        .with_for_update(skip_locked=True)
    )
    return [OperationRecord(**row._mapping) for row in rows]


def moving(connection: Connection, states: Sequence[str]) -> list[MovingRecord]:
    """Operations in these states for which a trainer keeps room."""
    rows = connection.execute(
        select(operations.c.operation_id, operations.c.state, operations.c.moving_to)
        .where(operations.c.moving_to > "")
        .order_by(operations.c.queue_time, operations.c.operation_id)
    )
    # In the query, the states would choose an index that goes through the whole queue.
    return [MovingRecord(**row._mapping) for row in rows if row.state in states]


def on_trainers(
    connection: Connection, state: str, trainer_ids: Sequence[str]
) -> list[OperationRecord]:
    """Operations in a state with an open attempt on one of these trainers, locked, in order."""
    rows = connection.execute(
        select(operations)
        .join(attempts, attempts.c.operation_id == operations.c.operation_id)
        .where(
            attempts.c.trainer_id.in_(trainer_ids),
            attempts.c.ending == "",
            operations.c.state == state,
        )
        .order_by(operations.c.queue_time, operations.c.operation_id)
        .with_for_update(of=operations, skip_locked=True)
    )
    return [OperationRecord(**row._mapping) for row in rows]


def count(connection: Connection, state: str) -> int:
    """How many operations are in a state."""
    query = select(func.count()).select_from(operations).where(operations.c.state == state)
    return connection.execute(query).scalar_one()


def next_due_time(connection: Connection, state: str, now: int) -> int | None:
    """When the next operation in a state falls due, if one does after `now`."""
    due: int | None = connection.execute(
        select(operations.c.due_time)
        .where(operations.c.state == state, operations.c.due_time > now)
        .order_by(operations.c.due_time)
        .limit(1)
    ).scalar_one_or_none()
    return due
