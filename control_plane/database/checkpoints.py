"""Rows of checkpoints, and of objects that are to be removed from the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, select, tuple_, update

from control_plane.database.schema import checkpoints, removals


@dataclass(frozen=True)
class CheckpointRecord:
    """One row; see the table for what each column means."""

    checkpoint_id: str
    operation_id: str
    attempt: int
    sequence: int
    epoch: int
    step: int
    create_time: int
    manifest_key: str
    manifest_digest: str
    logical_bytes: int
    monitor: str
    monitor_value: float | None
    pinned: bool
    damaged: bool
    payload: bytes


def add(connection: Connection, record: CheckpointRecord) -> None:
    """Inserts a checkpoint that is new."""
    connection.execute(insert(checkpoints).values(vars(record)))


def find(connection: Connection, checkpoint_id: str) -> CheckpointRecord | None:
    """The checkpoint, or None."""
    row = connection.execute(
        select(checkpoints).where(checkpoints.c.checkpoint_id == checkpoint_id)
    ).one_or_none()
    return None if row is None else CheckpointRecord(**row._mapping)


def of_operation(connection: Connection, operation_id: str) -> list[CheckpointRecord]:
    """All checkpoints of an operation, newest first."""
    rows = connection.execute(
        select(checkpoints)
        .where(checkpoints.c.operation_id == operation_id)
        .order_by(checkpoints.c.sequence.desc())
    )
    return [CheckpointRecord(**row._mapping) for row in rows]


def newest_of(connection: Connection, operation_ids: Sequence[str]) -> dict[str, CheckpointRecord]:
    """The newest readable checkpoint, by operation."""
    newest = (
        select(checkpoints.c.operation_id, func.max(checkpoints.c.sequence).label("sequence"))
        .where(checkpoints.c.operation_id.in_(operation_ids), checkpoints.c.damaged.is_(False))
        .group_by(checkpoints.c.operation_id)
        .subquery()
    )
    rows = connection.execute(
        select(checkpoints).join(
            newest,
            (checkpoints.c.operation_id == newest.c.operation_id)
            & (checkpoints.c.sequence == newest.c.sequence),
        )
    )
    return {row.operation_id: CheckpointRecord(**row._mapping) for row in rows}


def page(
    connection: Connection, operation_id: str, before: tuple[int, str] | None, limit: int
) -> list[CheckpointRecord]:
    """Checkpoints newest first, of one operation or (empty) of all."""
    query = select(checkpoints)
    if operation_id:
        query = query.where(checkpoints.c.operation_id == operation_id)
    if before is not None:
        query = query.where(tuple_(checkpoints.c.create_time, checkpoints.c.checkpoint_id) < before)
    query = query.order_by(checkpoints.c.create_time.desc(), checkpoints.c.checkpoint_id.desc())
    return [CheckpointRecord(**row._mapping) for row in connection.execute(query.limit(limit))]


def set_values(connection: Connection, checkpoint_id: str, **values: Any) -> None:
    """Sets columns of one checkpoint."""
    connection.execute(
        update(checkpoints).where(checkpoints.c.checkpoint_id == checkpoint_id).values(**values)
    )


def totals(connection: Connection) -> tuple[int, int, int]:
    """How many checkpoints there are, how many of them are damaged, and their bytes together."""
    row = connection.execute(
        select(
            func.count(),
            func.coalesce(func.sum(case((checkpoints.c.damaged, 1), else_=0)), 0),
            func.coalesce(func.sum(checkpoints.c.logical_bytes), 0),
        ).select_from(checkpoints)
    ).one()
    return int(row[0]), int(row[1]), int(row[2])


def ids(connection: Connection, operation_id: str) -> list[str]:
    """The checkpoints newest first, of one operation or (empty) of all."""
    query = select(checkpoints.c.checkpoint_id)
    if operation_id:
        query = query.where(checkpoints.c.operation_id == operation_id)
    query = query.order_by(checkpoints.c.create_time.desc(), checkpoints.c.checkpoint_id.desc())
    return [row.checkpoint_id for row in connection.execute(query)]


def manifest_keys(connection: Connection) -> set[str]:
    """The manifests of all checkpoints."""
    return {row.manifest_key for row in connection.execute(select(checkpoints.c.manifest_key))}


def remove(connection: Connection, checkpoint_ids: Sequence[str], now: int) -> list[str]:
    """Deletes rows; their manifests' keys are returned and stand in `removals`."""
    rows = connection.execute(
        delete(checkpoints)
        .where(checkpoints.c.checkpoint_id.in_(checkpoint_ids))
        .returning(checkpoints.c.manifest_key)
    )
    keys = [row.manifest_key for row in rows]
    plan_removals(connection, keys, now)
    return keys


def plan_removals(connection: Connection, keys: Iterable[str], now: int) -> None:
    """Remembers objects that are to be removed: keys, or prefixes that end with a slash."""
    known = {row.key for row in connection.execute(select(removals.c.key))}
    missing = [{"key": key, "create_time": now} for key in keys if key not in known]
    if missing:
        connection.execute(insert(removals), missing)


def planned_removals(connection: Connection) -> list[str]:
    """What is to be removed from the store, oldest first."""
    rows = connection.execute(select(removals.c.key).order_by(removals.c.create_time))
    return [row.key for row in rows]


def removal_done(connection: Connection, keys: Sequence[str]) -> None:
    """These are gone from the store."""
    connection.execute(delete(removals).where(removals.c.key.in_(keys)))
