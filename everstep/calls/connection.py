"""A blocking connection to the control plane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import grpc

from everstep.calls.failures import call_error
from everstep.calls.requests import Call, Item, Page, Pages, Response
from everstep.calls.retries import RETRY_OPTIONS
from everstep.rpc.options import open_sync_channel

Answer = TypeVar("Answer", covariant=True)


class ResponseStream(Protocol[Answer]):
    """The answers of a stream, and the way to end it."""

    def __iter__(self) -> Iterator[Answer]: ...
    def __next__(self) -> Answer: ...
    def cancel(self) -> bool: ...


class Connection:
    """Asks one control plane; a context manager that closes its channel. Threads may share it.

    Every method raises EverstepError with the service's reason.

    Args:
        address: host:port.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = open_sync_channel(address, RETRY_OPTIONS)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def ask(self, call: Call[Response]) -> Response:
        """The answer to a unary call."""
        method = self._channel.unary_unary(
            call.path, type(call.request).SerializeToString, call.response.FromString
        )
        try:
            answer: Response = method(call.request, timeout=call.seconds)
        except grpc.RpcError as failure:
            raise call_error(failure, self.address) from None
        return answer

    def each(self, pages: Pages[Page, Item]) -> Iterator[Item]:
        """All items, a page at a time."""
        following: Pages[Page, Item] | None = pages
        while following is not None:
            page = self.ask(following.call)
            yield from following.items(page)
            following = following.after(page)

    def stream(self, call: Call[Response]) -> Iterator[Response]:
        """The answers of a stream; one who stops iterating ends it."""
        stream = self.open(call)
        try:
            yield from stream
        except grpc.RpcError as failure:
            raise call_error(failure, self.address) from None
        finally:
            stream.cancel()

    def open(self, call: Call[Response]) -> ResponseStream[Response]:
        """A stream that the caller cancels when it is done with it."""
        method = self._channel.unary_stream(
            call.path, type(call.request).SerializeToString, call.response.FromString
        )
        return method(call.request)
