"""Rows of the event log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from control_plane.database.schema import events, operations
from everstep.control.v1.operations_pb2 import OperationEvent


@dataclass(frozen=True)
class LogHead:
    """How far an operation's log is, and where it begins."""

    last_sequence: int
    #: The oldest entry that is kept.
    first_sequence: int
    state: str


@dataclass(frozen=True)
class CompactableLog:
    """A log that is longer than it is to be."""

    operation_id: str
    #: Where it is to begin.
    first_sequence: int


def append(connection: Connection, operation_id: str, entries: Sequence[OperationEvent]) -> int:
    """Numbers the entries, stores them, and returns the last number.

    The numbers are taken in this transaction, so that they commit in order and without a gap.
    """
    last: int = connection.execute(
        update(operations)
        .where(operations.c.operation_id == operation_id)
        .values(last_sequence=operations.c.last_sequence + len(entries))
        .returning(operations.c.last_sequence)
    ).scalar_one()
    rows = []
    for sequence, entry in enumerate(entries, start=last - len(entries) + 1):
        entry.operation_id = operation_id
        entry.sequence = sequence
        word = entry.progress if entry.HasField("progress") else None
        rows.append(
            {
                "operation_id": operation_id,
                "sequence": sequence,
                "attempt": None if word is None else word.attempt,
                "attempt_index": None if word is None else word.index,
                "payload": entry.SerializeToString(),
            }
        )
    connection.execute(insert(events), rows)
    return last


def head(connection: Connection, operation_id: str) -> LogHead | None:
    """How far the log is; None when there is no such operation."""
    return heads(connection, [operation_id]).get(operation_id)


def heads(connection: Connection, operation_ids: Sequence[str]) -> dict[str, LogHead]:
    """How far the logs are, by operation; one that is gone is left out."""
    rows = connection.execute(
        select(
            operations.c.operation_id,
            operations.c.last_sequence,
            operations.c.first_sequence,
            operations.c.state,
        ).where(operations.c.operation_id.in_(operation_ids))
    )
    return {
        row.operation_id: LogHead(row.last_sequence, row.first_sequence, row.state) for row in rows
    }


def page(
    connection: Connection, operation_id: str, after: int, limit: int, size: int
) -> list[bytes]:
    """The entries after a sequence, in order, as OperationEvent bytes.

    Args:
        limit: Of entries.
        size: Of all together, in bytes; one that is larger by itself comes alone.
    """
    behind = (
        events.c.operation_id == operation_id,
        events.c.sequence > after,
        events.c.sequence <= after + limit,
    )
    running = func.sum(func.length(events.c.payload)).over(order_by=events.c.sequence)
    sizes = select(events.c.sequence, running.label("total")).where(*behind).subquery()
    last = (
        select(func.max(sizes.c.sequence))
        .where((sizes.c.total <= size) | (sizes.c.sequence == after + 1))
        .scalar_subquery()
    )
    rows = connection.execute(
        select(events.c.payload)
        .where(*behind, events.c.sequence <= last)
        .order_by(events.c.sequence)
    )
    return list(rows.scalars())


def longer_than(connection: Connection, kept: int, limit: int) -> list[CompactableLog]:
    """Logs of more entries than are to be kept, up to `limit` of them."""
    rows = connection.execute(
        select(operations.c.operation_id, operations.c.last_sequence)
        .where(operations.c.last_sequence - operations.c.first_sequence >= kept)
        .limit(limit)
    )
    return [CompactableLog(row.operation_id, row.last_sequence - kept + 1) for row in rows]


def ended_before(
    connection: Connection, states: Sequence[str], end_time: int, limit: int
) -> list[CompactableLog]:
    """Logs of operations that ended earlier and have more than their last entry."""
    rows = connection.execute(
        select(operations.c.operation_id, operations.c.last_sequence)
        .where(
            operations.c.state.in_(states),
            operations.c.end_time < end_time,
            operations.c.first_sequence < operations.c.last_sequence,
        )
        .limit(limit)
    )
    return [CompactableLog(row.operation_id, row.last_sequence) for row in rows]


def remove_before(
    connection: Connection, operation_id: str, first_sequence: int, limit: int
) -> int | None:
    """Removes the oldest entries, up to `limit` of them, and says where the log begins then.

    The last entry stays. None when there is no such operation.
    """
    row = connection.execute(
        select(operations.c.first_sequence, operations.c.last_sequence)
        .where(operations.c.operation_id == operation_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return None
    first: int = min(first_sequence, row.last_sequence, row.first_sequence + limit)
    if first <= row.first_sequence:
        return int(row.first_sequence)
    connection.execute(
        delete(events).where(events.c.operation_id == operation_id, events.c.sequence < first)
    )
    connection.execute(
        update(operations)
        .where(operations.c.operation_id == operation_id)
        .values(first_sequence=first)
    )
    return first
