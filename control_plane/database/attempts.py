"""Rows of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from control_plane.database.schema import attempts, operations


@dataclass(frozen=True)
class AttemptRecord:
    """One row; see the table for what each column means."""

    operation_id: str
    number: int
    trainer_id: str
    environment: bytes
    start_time: int
    end_time: int | None
    first_step: int
    last_step: int
    #: Empty while the attempt is open.
    ending: str
    end_reason: str
    process_id: int
    cursor: int
    checkpoint: bytes | None
    overrides: bytes
    forgotten: bool
    late_noted: bool
    liveness: str = "HEARD"
    liveness_time: int | None = None


@dataclass(frozen=True)
class OpenAttempt:
    """An attempt that is open, with what its operation is called and how far it is."""

    trainer_id: str
    operation_id: str
    number: int
    start_time: int
    display_name: str
    position: bytes
    moving_to: str


def add(connection: Connection, record: AttemptRecord) -> None:
    """Inserts an attempt that is new."""
    connection.execute(insert(attempts).values(vars(record)))


def find(connection: Connection, operation_id: str, number: int) -> AttemptRecord | None:
    """The attempt, or None."""
    row = connection.execute(
        select(attempts).where(attempts.c.operation_id == operation_id, attempts.c.number == number)
    ).one_or_none()
    return None if row is None else AttemptRecord(**row._mapping)


def of_operations(
    connection: Connection, operation_ids: Sequence[str]
) -> dict[str, list[AttemptRecord]]:
    """Attempts in order, by operation."""
    found: dict[str, list[AttemptRecord]] = {}
    rows = connection.execute(
        select(attempts)
        .where(attempts.c.operation_id.in_(operation_ids))
        .order_by(attempts.c.operation_id, attempts.c.number)
    )
    for row in rows:
        found.setdefault(row.operation_id, []).append(AttemptRecord(**row._mapping))
    return found


def set_values(connection: Connection, operation_id: str, number: int, **values: Any) -> None:
    """Sets columns of one attempt."""
    connection.execute(
        update(attempts)
        .where(attempts.c.operation_id == operation_id, attempts.c.number == number)
        .values(**values)
    )


def set_forgotten(connection: Connection, operation_id: str, number: int) -> None:
    """Its trainer keeps nothing of the attempt any more."""
    set_values(connection, operation_id, number, forgotten=True)


def open_by_trainer(connection: Connection) -> dict[str, list[OpenAttempt]]:
    """The attempts that are open, by trainer, the oldest first."""
    found: dict[str, list[OpenAttempt]] = {}
    rows = connection.execute(
        select(
            attempts.c.trainer_id,
            attempts.c.operation_id,
            attempts.c.number,
            attempts.c.start_time,
            operations.c.display_name,
            operations.c.position,
            operations.c.moving_to,
        )
        .select_from(attempts.join(operations))
        .where(attempts.c.forgotten.is_(False), attempts.c.ending == "")
        .order_by(attempts.c.start_time, attempts.c.operation_id)
    )
    for row in rows:
        found.setdefault(row.trainer_id, []).append(OpenAttempt(**row._mapping))
    return found


def load_by_trainer(connection: Connection) -> dict[str, int]:
    """How many attempts are open, by trainer."""
    rows = connection.execute(
        select(attempts.c.trainer_id, func.count().label("open"))
        .where(attempts.c.forgotten.is_(False), attempts.c.ending == "")
        .group_by(attempts.c.trainer_id)
    )
    return {row.trainer_id: row.open for row in rows}


def newest(connection: Connection, operation_id: str, limit: int) -> list[AttemptRecord]:
    """The newest attempts of an operation, newest first."""
    rows = connection.execute(
        select(attempts)
        .where(attempts.c.operation_id == operation_id)
        .order_by(attempts.c.number.desc())
        .limit(limit)
    )
    return [AttemptRecord(**row._mapping) for row in rows]


def unforgotten(
    connection: Connection, trainer_ids: Sequence[str], limit: int
) -> list[AttemptRecord]:
    """Attempts that are over, of these trainers, which were not told so yet; oldest first."""
    rows = connection.execute(
        select(attempts)
        .where(
            attempts.c.forgotten.is_(False),
            attempts.c.ending != "",
            attempts.c.trainer_id.in_(trainer_ids),
        )
        .order_by(attempts.c.end_time)
        .limit(limit)
    )
    return [AttemptRecord(**row._mapping) for row in rows]


def settled(connection: Connection, operation_id: str, number: int) -> bool:
    """Whether an attempt of a known operation can say nothing more: its trainer forgot it."""
    count: int = connection.execute(
        select(func.count())
        .select_from(attempts.join(operations))
        .where(
            attempts.c.operation_id == operation_id,
            attempts.c.number == number,
            attempts.c.ending != "",
            attempts.c.forgotten.is_(True),
        )
    ).scalar_one()
    return count == 1
