"""Rows of operations, their labels and the requests that made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, or_, select, tuple_, update

from control_plane.database.schema import checkpoints, operation_labels, operations, requests


@dataclass(frozen=True)
class OperationRecord:
    """One row; see the table for what each column means."""

    operation_id: str
    display_name: str
    state: str
    strategy: bytes
    strategy_digest: str
    restart_policy: bytes
    create_time: int
    update_time: int
    end_time: int | None
    attempt: int
    last_sequence: int
    first_sequence: int
    owner: str
    owner_lease_time: int
    losses: int
    due_time: int
    waiting_for: str
    position: bytes
    at_risk: bytes | None
    metrics: str
    result: bytes | None
    error: bytes | None
    discard: bool
    overrides: bytes | None
    resumed_after: int
    resume_checkpoint_id: str | None
    resume_named: bool
    parent_operation_id: str
    from_checkpoint: bytes | None
    priority: int
    queue_time: int
    trainer_labels: str
    demand: str
    moving_to: str


@dataclass(frozen=True)
class OperationHead:
    """What tells that an operation has changed."""

    operation_id: str
    create_time: int
    update_time: int
    last_sequence: int
    state: str


@dataclass(frozen=True)
class OperationFilter:
    """Which operations to list; an empty field filters nothing."""

    states: Sequence[str] = ()
    labels: Sequence[tuple[str, str]] = ()
    #: Only those in one of these states with a checkpoint that can be read.
    resumable_states: Sequence[str] = ()


def add(connection: Connection, record: OperationRecord, labels: Mapping[str, str]) -> None:
    """Inserts an operation that is new."""
    connection.execute(insert(operations).values(vars(record)))
    if labels:
        connection.execute(
            insert(operation_labels),
            [
                {"operation_id": record.operation_id, "name": name, "value": value}
                for name, value in labels.items()
            ],
        )


def find(connection: Connection, operation_id: str) -> OperationRecord | None:
    """The operation, or None."""
    row = connection.execute(
        select(operations).where(operations.c.operation_id == operation_id)
    ).one_or_none()
    return None if row is None else OperationRecord(**row._mapping)


def lock(connection: Connection, operation_id: str) -> OperationRecord | None:
    """As `find`; nobody else changes it until this transaction ends."""
    row = connection.execute(
        select(operations).where(operations.c.operation_id == operation_id).with_for_update()
    ).one_or_none()
    return None if row is None else OperationRecord(**row._mapping)


def change_state(
    connection: Connection,
    operation_id: str,
    sources: Iterable[str],
    target: str,
    attempt: int,
    values: Mapping[str, Any],
) -> bool:
    """Sets the state if the operation is in one of `sources` and at this attempt."""
    changed = connection.execute(
        update(operations)
        .where(
            operations.c.operation_id == operation_id,
            operations.c.state.in_(list(sources)),
            operations.c.attempt == attempt,
        )
        .values(state=target, **values)
    )
    return changed.rowcount == 1


def set_values(connection: Connection, operation_id: str, **values: Any) -> None:
    """Sets columns other than the state."""
    assert "state" not in values
    connection.execute(
        update(operations).where(operations.c.operation_id == operation_id).values(**values)
    )


def page(
    connection: Connection,
    wanted: OperationFilter,
    before: tuple[int, str] | None,
    limit: int,
) -> list[OperationRecord]:
    """Operations newest first, those before a (create time, id) that was listed last."""
    query = select(operations)
    if before is not None:
        query = query.where(tuple_(operations.c.create_time, operations.c.operation_id) < before)
    if wanted.states:
        query = query.where(operations.c.state.in_(wanted.states))
    for name, value in wanted.labels:
        query = query.where(
            exists().where(
                operation_labels.c.operation_id == operations.c.operation_id,
                operation_labels.c.name == name,
                operation_labels.c.value == value,
            )
        )
    if wanted.resumable_states:
        query = query.where(
            operations.c.state.in_(wanted.resumable_states),
            exists().where(
                checkpoints.c.operation_id == operations.c.operation_id,
                checkpoints.c.damaged.is_(False),
            ),
        )
    query = query.order_by(operations.c.create_time.desc(), operations.c.operation_id.desc())
    return [OperationRecord(**row._mapping) for row in connection.execute(query.limit(limit))]


def newest_heads(connection: Connection, limit: int) -> list[OperationHead]:
    """The newest operations, newest first."""
    rows = connection.execute(
        select(
            operations.c.operation_id,
            operations.c.create_time,
            operations.c.update_time,
            operations.c.last_sequence,
            operations.c.state,
        )
        .order_by(operations.c.create_time.desc(), operations.c.operation_id.desc())
        .limit(limit)
    )
    return [OperationHead(**row._mapping) for row in rows]


def find_many(connection: Connection, operation_ids: Sequence[str]) -> list[OperationRecord]:
    """Those of the operations that there are."""
    rows = connection.execute(
        select(operations).where(operations.c.operation_id.in_(operation_ids))
    )
    return [OperationRecord(**row._mapping) for row in rows]


def labels_of(
    connection: Connection, operation_ids: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Labels as (name, value) by operation."""
    found: dict[str, list[tuple[str, str]]] = {}
    rows = connection.execute(
        select(operation_labels).where(operation_labels.c.operation_id.in_(operation_ids))
    )
    for row in rows:
        found.setdefault(row.operation_id, []).append((row.name, row.value))
    return found


def owned_or_abandoned(
    connection: Connection, states: Sequence[str], owner: str, now: int
) -> list[str]:
    """Operations in these states that belong to `owner` or whose owner's lease has ended."""
    rows = connection.execute(
        select(operations.c.operation_id).where(
            operations.c.state.in_(states),
            or_(operations.c.owner == owner, operations.c.owner_lease_time < now),
        )
    )
    return [row.operation_id for row in rows]


def take_over(
    connection: Connection,
    operation_id: str,
    states: Sequence[str],
    owner: str,
    now: int,
    lease_time: int,
) -> bool:
    """Makes `owner` the owner if it is already, or if the lease of another has ended."""
    taken = connection.execute(
        update(operations)
        .where(
            operations.c.operation_id == operation_id,
            operations.c.state.in_(states),
            or_(operations.c.owner == owner, operations.c.owner_lease_time < now),
        )
        .values(owner=owner, owner_lease_time=lease_time)
    )
    return taken.rowcount == 1


def cap_owner_leases(connection: Connection, latest: int) -> None:
    """No owner's lease lasts longer: one that does was given before the clock went back."""
    connection.execute(
        update(operations)
        .where(operations.c.owner_lease_time > latest)
        .values(owner_lease_time=latest)
    )


def hasten_due(connection: Connection, now: int, by: int, latest: int) -> None:
    """Operations that are not due yet fall due so much earlier, and at the latest then."""
    due = operations.c.due_time
    connection.execute(update(operations).where(due > now).values(due_time=due - by))
    connection.execute(update(operations).where(due > latest).values(due_time=latest))


def remove(connection: Connection, operation_id: str, states: Iterable[str]) -> bool:
    """Deletes an operation in one of these states, with all its rows."""
    removed = connection.execute(
        delete(operations).where(
            operations.c.operation_id == operation_id, operations.c.state.in_(list(states))
        )
    )
    return removed.rowcount == 1


def forks_in_states(
    connection: Connection, parent_operation_id: str, states: Sequence[str]
) -> list[OperationRecord]:
    """Operations in these states that were forked from checkpoints of another one."""
    rows = connection.execute(
        select(operations).where(
            operations.c.parent_operation_id == parent_operation_id, operations.c.state.in_(states)
        )
    )
    return [OperationRecord(**row._mapping) for row in rows]


def find_request(connection: Connection, request_id: str) -> tuple[str, str] | None:
    """The (payload digest, operation id) of a request that was answered, or None."""
    row = connection.execute(
        select(requests.c.payload_digest, requests.c.operation_id).where(
            requests.c.request_id == request_id
        )
    ).one_or_none()
    return None if row is None else (row.payload_digest, row.operation_id)


def add_request(
    connection: Connection, request_id: str, payload_digest: str, operation_id: str, now: int
) -> None:
    """Remembers a request; IntegrityError when another transaction was first."""
    connection.execute(
        insert(requests).values(
            request_id=request_id,
            payload_digest=payload_digest,
            operation_id=operation_id,
            create_time=now,
        )
    )
