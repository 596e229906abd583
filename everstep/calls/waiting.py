"""Waiting for what was asked of an operation."""

from __future__ import annotations

import time
from contextlib import closing

from everstep.calls.connection import Connection
from everstep.calls.cursor import FINAL_STATES, Interrupted, not_told
from everstep.calls.requests import checkpoint_operation, get_operation
from everstep.calls.watch import Watch
from everstep.control.v1.operations_pb2 import Operation, OperationEvent
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import CHECKPOINT_TRIGGER_PERIODIC, Checkpoint


def ended(
    connection: Connection,
    operation: Operation,
    seconds: float | None = None,
    interrupted: Interrupted = not_told,
) -> Operation:
    """The operation once it is in a final state.

    Args:
        operation: As it was last seen.

    Raises:
        EverstepError: DEADLINE_EXCEEDED when it has not ended in so many seconds.
    """
    name = operation.operation_id
    end = None if seconds is None else time.monotonic() + seconds
    while operation.state not in FINAL_STATES:
        left = None if end is None else end - time.monotonic()
        after = operation.last_sequence
        with closing(Watch(connection, name, after, interrupted, left)) as watch:
            for _ in watch:
                pass
        operation = connection.ask(get_operation(name))
    return operation


def take_checkpoint(
    connection: Connection,
    operation: Operation,
    seconds: float | None = None,
    interrupted: Interrupted = not_told,
) -> Checkpoint:
    """Asks for a checkpoint after the current step, and waits until it is committed.

    Args:
        operation: As it was last seen.

    Raises:
        EverstepError: NOT_RUNNING; DEADLINE_EXCEEDED when it is not there in so many seconds.
    """
    name = operation.operation_id
    connection.ask(checkpoint_operation(name))
    with closing(Watch(connection, name, operation.last_sequence, interrupted, seconds)) as watch:
        for event in watch:
            if is_taken(event):
                return event.progress.checkpoint_committed.checkpoint
    raise not_taken(name)


def is_taken(event: OperationEvent) -> bool:
    """Whether it is of the checkpoint that was asked for, or one that came in its place."""
    # A periodic one may have been on its way before.
    return (
        event.progress.HasField("checkpoint_committed")
        and event.progress.checkpoint_committed.checkpoint.trigger != CHECKPOINT_TRIGGER_PERIODIC
    )


def not_taken(operation_id: str) -> EverstepError:
    """The operation ended before it took the checkpoint that was asked for."""
    return EverstepError(
        Reason.NOT_RUNNING, f"{operation_id} ended before the checkpoint was taken"
    )
