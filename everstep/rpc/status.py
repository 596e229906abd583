"""Errors on the wire: exactly one ErrorInfo, and BadRequest for refused fields (AIP-193)."""

from __future__ import annotations

from typing import cast

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from everstep.errors import ERROR_DOMAIN, EverstepError, FieldViolation, Reason

_REASON_OF_BARE_STATUS = {
    grpc.StatusCode.UNAVAILABLE: Reason.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Reason.CALL_CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED: Reason.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.MESSAGE_TOO_LARGE,
}


def status_of_error(error: EverstepError) -> grpc.Status:
    """The gRPC status that carries an error to a caller."""
    information = error_details_pb2.ErrorInfo(
        reason=error.reason.value, domain=ERROR_DOMAIN, metadata=error.metadata
    )
    details = [_packed(information)]
    if error.violations:
        details.append(
            _packed(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=violation.field, description=violation.description
                        )
                        for violation in error.violations
                    ]
                )
            )
        )
    code = grpc.StatusCode[error.status].value[0]
    status: grpc.Status = rpc_status.to_status(
        status_pb2.Status(code=code, message=error.message, details=details)
    )
    return status


def error_from_call(failure: grpc.RpcError) -> EverstepError:
    """The error that a failed call carries, whether or not the server was one of ours."""
    assert isinstance(failure, grpc.Call | grpc.aio.AioRpcError)
    code = failure.code()
    message = " ".join((failure.details() or "").split())
    try:
        status = rpc_status.from_call(cast(grpc.Call, failure))
    except ValueError:
        status = None
    information = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    for detail in status.details if status is not None else ():
        detail.Unpack(information)
        detail.Unpack(request)
    try:
        reason = Reason(information.reason)
    except ValueError:
        reason = _REASON_OF_BARE_STATUS.get(code, Reason.INTERNAL)
        message = message or f"the call failed with {code.name}"
    return EverstepError(
        reason,
        message,
        violations=[
            FieldViolation(violation.field, violation.description)
            for violation in request.field_violations
        ],
        metadata=dict(information.metadata),
    )


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest,
) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
