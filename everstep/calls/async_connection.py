"""An asyncio connection to the control plane."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc

from everstep.calls.failures import call_error
from everstep.calls.requests import Call, Item, Page, Pages, Response
from everstep.calls.retries import RETRY_OPTIONS
from everstep.rpc.options import open_channel


class AsyncConnection:
    """Asks one control plane; an async context manager that closes its channel.

    The channel belongs to the event loop in which the first call is made.

    Every method raises EverstepError with the service's reason.

    Args:
        address: host:port.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> AsyncConnection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls on their way end."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def ask(self, call: Call[Response]) -> Response:
        """The answer to a unary call."""
        method = self._opened().unary_unary(
            call.path, type(call.request).SerializeToString, call.response.FromString
        )
        try:
            answer: Response = await method(call.request, timeout=call.seconds)
        except grpc.aio.AioRpcError as failure:
            raise call_error(failure, self.address) from None
        return answer

    async def each(self, pages: Pages[Page, Item]) -> AsyncGenerator[Item]:
        """All items, a page at a time."""
        following: Pages[Page, Item] | None = pages
        while following is not None:
            page = await self.ask(following.call)
            for item in following.items(page):
                yield item
            following = following.after(page)

    async def stream(self, call: Call[Response]) -> AsyncGenerator[Response]:
        """The answers of a stream; one who closes it ends it."""
        stream = self.open(call)
        try:
            async for response in stream:
                yield response
        except grpc.aio.AioRpcError as failure:
            raise call_error(failure, self.address) from None
        finally:
            stream.cancel()

    def open(self, call: Call[Response]) -> grpc.aio.UnaryStreamCall[Any, Response]:
        """A stream that the caller cancels when it is done with it."""
        method = self._opened().unary_stream(
            call.path, type(call.request).SerializeToString, call.response.FromString
        )
        return method(call.request)

    def _opened(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = open_channel(self.address, RETRY_OPTIONS)
        return self._channel
