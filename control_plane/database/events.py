"""Rows of the event log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from control_plane.database.schema import events, operations
from everstep.control.v1.operations_pb2 import OperationEvent


@dataclass(frozen=True)
class LogHead:
    """How far an operation's log is."""

    last_sequence: int
    state: str


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
    row = connection.execute(
        select(operations.c.last_sequence, operations.c.state).where(
            operations.c.operation_id == operation_id
        )
    ).one_or_none()
    return None if row is None else LogHead(row.last_sequence, row.state)


def page(connection: Connection, operation_id: str, after: int, limit: int) -> list[bytes]:
    """Up to `limit` entries after a sequence, in order, as OperationEvent bytes."""
    rows = connection.execute(
        select(events.c.payload)
        .where(events.c.operation_id == operation_id, events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(limit)
    )
    return [row.payload for row in rows]
