"""Rows of operations that were deleted, and of attempts of theirs that trainers may keep still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from control_plane.database.schema import attempts, deleted_operations, orphaned_attempts


@dataclass(frozen=True)
class Orphan:
    """An attempt whose operation was deleted."""

    operation_id: str
    number: int
    trainer_id: str


def add(connection: Connection, operation_id: str, now: int) -> None:
    """Remembers an operation that is about to be deleted, and what trainers have to hear of it."""
    connection.execute(
        insert(deleted_operations).values(operation_id=operation_id, delete_time=now)
    )
    columns = [attempts.c.operation_id, attempts.c.number, attempts.c.trainer_id]
    unforgotten = select(*columns).where(
        attempts.c.operation_id == operation_id, attempts.c.forgotten.is_(False)
    )
    connection.execute(
        insert(orphaned_attempts).from_select([column.name for column in columns], unforgotten)
    )


def contains(connection: Connection, operation_id: str) -> bool:
    """Whether there was such an operation, and it was deleted."""
    found = select(deleted_operations).where(deleted_operations.c.operation_id == operation_id)
    return connection.execute(found).first() is not None


def orphans(connection: Connection, trainer_ids: Sequence[str], limit: int) -> list[Orphan]:
    """The attempts that these trainers may keep."""
    rows = connection.execute(
        select(orphaned_attempts)
        .where(orphaned_attempts.c.trainer_id.in_(trainer_ids))
        .order_by(orphaned_attempts.c.operation_id, orphaned_attempts.c.number)
        .limit(limit)
    )
    return [Orphan(**row._mapping) for row in rows]


def remove_orphan(connection: Connection, orphan: Orphan) -> None:
    """Its trainer keeps nothing of it."""
    connection.execute(
        delete(orphaned_attempts).where(
            orphaned_attempts.c.operation_id == orphan.operation_id,
            orphaned_attempts.c.number == orphan.number,
        )
    )
