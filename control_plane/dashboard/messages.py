"""Messages as JSON: protobuf's own mapping, with the names that the contract gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from everstep.errors import EverstepError, FieldViolation, Reason
from everstep.strategy import validate_message

Asked = TypeVar("Asked", bound=Message)

#: Bytes of a request's body: requests of the page are small.
BODY_BYTES: Final = 64 * 1024
#: The HTTP status of each gRPC status, as google.rpc.Code gives them.
HTTP_STATUS: Final = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "DATA_LOSS": 500,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def content_of(message: Message) -> dict[str, Any]:
    """A message as JSON content: 64-bit numbers are strings, what is unset is left out."""
    content: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return content


def json_text(content: object) -> str:
    """JSON on one line."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def message_response(message: Message) -> Response:
    """A message as the body of an answer."""
    return _json_response(content_of(message), 200)


def error_content(error: EverstepError) -> dict[str, Any]:
    """An error as JSON content (AIP-193)."""
    return {
        "error": {
            "code": HTTP_STATUS[error.status],
            "status": error.status,
            "reason": error.reason.value,
            "message": error.message,
            "metadata": error.metadata,
            "violations": [vars(violation) for violation in error.violations],
        }
    }


def error_response(error: EverstepError) -> Response:
    """An error as an answer, with the HTTP status of its gRPC status."""
    return _json_response(error_content(error), HTTP_STATUS[error.status])


async def read_request(request: Request, message: Asked, **named: str) -> Asked:
    """The body as a request message, valid by the contract; `named` are fields of the path.

    Raises:
        EverstepError: INVALID_REQUEST.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise _refused("body", f"larger than {BODY_BYTES} bytes")
    try:
        json_format.Parse(bytes(body) or b"{}", message)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise _refused("body", " ".join(str(error).split())) from None
    return _checked(message, named)


def read_query(request: Request, message: Asked, fields: Sequence[str], **named: str) -> Asked:
    """The named fields of the query as a request message, valid by the contract.

    Raises:
        EverstepError: INVALID_REQUEST.
    """
    content = {
        field: request.query_params[field] for field in fields if field in request.query_params
    }
    try:
        json_format.ParseDict(content, message)
    except json_format.ParseError as error:
        raise _refused("query", " ".join(str(error).split())) from None
    return _checked(message, named)


def _checked(message: Asked, named: dict[str, str]) -> Asked:
    for field, value in named.items():
        setattr(message, field, value)
    validate_message(message)
    return message


def _refused(field: str, description: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST,
        f"the request's {field} is refused: {description}; correct it",
        violations=[FieldViolation(field, description)],
    )


def _json_response(content: object, status: int) -> Response:
    return Response(
        json_text(content), status, {"Cache-Control": "no-store"}, "application/json; charset=utf-8"
    )
