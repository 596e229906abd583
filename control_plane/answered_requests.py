"""Requests that carry an id of the caller's: said again, they are answered as before."""

from __future__ import annotations

from blake3 import blake3
from google.protobuf.message import Message
from sqlalchemy import Connection

from control_plane import times
from control_plane.database import operations
from everstep.errors import EverstepError, Reason


def answered_with(connection: Connection, request_id: str, request: Message) -> str | None:
    """The operation that this request was answered with before, if it was.

    Raises:
        EverstepError: REQUEST_ID_REUSED when it was another request.
    """
    known = operations.find_request(connection, request_id) if request_id else None
    if known is None:
        return None
    payload_digest, operation_id = known
    if payload_digest != _payload_digest(request):
        raise EverstepError(
            Reason.REQUEST_ID_REUSED,
            f"request_id {request_id} was used for another request; take a new UUID",
        )
    return operation_id


def remember_answer(
    connection: Connection, request_id: str, request: Message, operation_id: str
) -> None:
    """Keeps what a request was answered with; one without an id is not kept."""
    if request_id:
        operations.add_request(
            connection, request_id, _payload_digest(request), operation_id, times.now()
        )


def _payload_digest(request: Message) -> str:
    name = request.DESCRIPTOR.full_name.encode()
    return blake3(name + b"\0" + request.SerializeToString(deterministic=True)).hexdigest()
