"""Which checkpoint an attempt begins with when nobody named one: never none where there was one."""

from __future__ import annotations

from sqlalchemy import Connection

from control_plane.attempt_ends import next_readable
from control_plane.database import checkpoints
from control_plane.database.checkpoints import CheckpointRecord
from control_plane.database.operations import OperationRecord


def newest_to_try(connection: Connection, operation_id: str) -> CheckpointRecord | None:
    """The newest readable one, else the newest: it is read again, and its attempt says why not."""
    readable = next_readable(connection, operation_id)
    if readable is not None:
        return readable
    return next(iter(checkpoints.of_operation(connection, operation_id)), None)


def passed_over(connection: Connection, operation: OperationRecord, taken: CheckpointRecord) -> str:
    """Names an operation's newer checkpoints that cannot be read, for the log; or nothing."""
    damaged = [
        checkpoint.checkpoint_id
        for checkpoint in checkpoints.of_operation(connection, operation.operation_id)
        if checkpoint.damaged and checkpoint.sequence > taken.sequence
    ]
    if not damaged:
        return ""
    return f"; {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} damaged"
