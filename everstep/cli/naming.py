"""Operations by the beginning of their id."""

from __future__ import annotations

from everstep.calls.connection import Connection
from everstep.calls.requests import get_operation, list_operations
from everstep.control.v1.operations_pb2 import Operation
from everstep.errors import EverstepError, Reason


def find_operation(connection: Connection, name: str) -> Operation:
    """An operation whose id is given whole, or as a beginning that is unique.

    Raises:
        EverstepError: OPERATION_NOT_FOUND; INVALID_REQUEST when several begin like this.
    """
    try:
        return connection.ask(get_operation(name))
    except EverstepError as error:
        if error.reason not in (Reason.OPERATION_NOT_FOUND, Reason.INVALID_REQUEST):
            raise
        first = error
    found = [
        operation
        for operation in connection.each(list_operations())
        if name and operation.operation_id.startswith((name, f"op-{name}"))
    ]
    if len(found) > 1:
        ids = ", ".join(operation.operation_id for operation in found[:4])
        raise EverstepError(
            Reason.INVALID_REQUEST, f"{len(found)} operations begin with {name}: {ids}; name one"
        )
    if not found:
        raise first
    return found[0]
