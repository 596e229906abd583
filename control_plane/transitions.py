"""Changing an operation's state: one conditional UPDATE, and its entry in the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from control_plane import times
from control_plane.database import events, operations
from control_plane.database.operations import OperationRecord
from control_plane.states import FINAL_STATES, TRANSITIONS, Change, State
from everstep.control.v1.operations_pb2 import Note, OperationEvent, StateChanged


def change_state(
    connection: Connection,
    operation: OperationRecord,
    change: Change,
    message: str,
    *,
    attempt: int | None = None,
    values: Mapping[str, Any] | None = None,
) -> bool:
    """Changes the state where the table of transitions allows it.

    Args:
        connection: Of the transaction, in which `operation` was locked.
        operation: As it was read.
        change: What happens.
        message: For the people who read the log.
        attempt: The number of the attempt from here on; None: as it was.
        values: Columns that change with it.

    Returns:
        False when the operation was in no state that this change begins in; nothing is changed.
    """
    transition = TRANSITIONS[change]
    now = times.now()
    columns: dict[str, Any] = {
        "update_time": now,
        "end_time": now if transition.target in FINAL_STATES else None,
        "waiting_for": "",
        "moving_to": "",
        **(values or {}),
    }
    if attempt is not None:
        columns["attempt"] = attempt
    changed = operations.change_state(
        connection,
        operation.operation_id,
        transition.sources,
        transition.target,
        operation.attempt,
        columns,
    )
    if changed:
        state_changed = StateChanged(
            to=transition.target.message,
            attempt=operation.attempt if attempt is None else attempt,
            reason=change.value,
            message=message,
        )
        # `from` is a keyword of Python.
        setattr(state_changed, "from", State(operation.state).message)
        entry = OperationEvent(time=times.timestamp(now), state_changed=state_changed)
        events.append(connection, operation.operation_id, [entry])
    return changed


def created_event(message: str) -> OperationEvent:
    """The first entry of every log."""
    return OperationEvent(
        time=times.timestamp(times.now()),
        state_changed=StateChanged(to=State.PENDING.message, reason="CREATED", message=message),
    )


def note_event(reason: str, message: str, attempt: int) -> OperationEvent:
    """An entry for the people who read the log."""
    return OperationEvent(
        time=times.timestamp(times.now()),
        note=Note(reason=reason, message=message, attempt=attempt),
    )
