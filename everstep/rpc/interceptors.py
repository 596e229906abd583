"""What every call goes through: the request is validated, and an error gets its status."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from everstep.errors import EverstepError, Reason
from everstep.rpc.status import status_of_error
from everstep.strategy import validate_message

_log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def server_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """The interceptors of every Everstep server, outermost first."""
    return [ErrorInterceptor()]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Validates requests and turns exceptions into statuses.

    An EverstepError carries its own reason. Anything else becomes INTERNAL with an id; its text
    stays in the log, because it may hold what a caller must not see.
    """

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guarded_unary(handler.unary_unary, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guarded_stream(handler.unary_stream, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=_or_bytes(handler.response_serializer),
            )
        return handler


def _guarded_unary(behaviour: Any, method: str) -> Any:
    async def call(request: Message, context: Context) -> Any:
        try:
            _check(request, method)
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await context.abort_with_status(_status_of(error, method))

    return call


def _guarded_stream(behaviour: Any, method: str) -> Any:
    async def call(request: Message, context: Context) -> AsyncIterator[Any]:
        try:
            _check(request, method)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await context.abort_with_status(_status_of(error, method))

    return call


def _or_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """A stream may give a message as the bytes that it has already."""

    def serialized(message: Any) -> bytes:
        if isinstance(message, bytes) or serialize is None:
            return bytes(message)
        return serialize(message)

    return serialized


def _check(request: Message, method: str) -> None:
    if not method.startswith("/everstep."):
        return
    try:
        validate_message(request)
    except EverstepError as error:
        if all(violation.field.startswith("strategy.") for violation in error.violations):
            raise EverstepError(
                Reason.INVALID_STRATEGY, error.message, violations=error.violations
            ) from None
        raise


def _status_of(error: Exception, method: str) -> grpc.Status:
    if isinstance(error, EverstepError):
        return status_of_error(error)
    error_id = secrets.token_hex(6)
    _log.error("call failed", method=method, error_id=error_id, exc_info=error)
    return status_of_error(
        EverstepError(
            Reason.INTERNAL,
            f"internal error {error_id}; the service's log has the details under this id",
            metadata={"error_id": error_id},
        )
    )
