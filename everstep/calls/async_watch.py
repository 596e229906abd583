"""A watch that takes itself up again, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import grpc

from everstep.calls.async_connection import AsyncConnection
from everstep.calls.cursor import (
    FINAL_STATES,
    SILENCE_SECONDS,
    Interrupted,
    WatchCursor,
    broken_off,
    not_told,
    silent,
)
from everstep.calls.failures import call_error
from everstep.calls.requests import get_operation
from everstep.control.v1.operations_pb2 import OperationEvent, WatchOperationResponse
from everstep.errors import EverstepError

WatchStream = grpc.aio.UnaryStreamCall[Any, WatchOperationResponse]


class AsyncWatch:
    """As Watch, an async iterator. A task that is cancelled in it leaves no stream open."""

    def __init__(
        self,
        connection: AsyncConnection,
        operation_id: str,
        after_sequence: int = 0,
        interrupted: Interrupted = not_told,
    ) -> None:
        self._connection = connection
        self._cursor = WatchCursor(operation_id, after_sequence)
        self._interrupted = interrupted
        self._stream: WatchStream | None = None
        self._waiting: deque[OperationEvent] = deque()
        self._over = False

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> OperationEvent:
        while not self._waiting:
            if self._over:
                raise StopAsyncIteration
            try:
                await self._read()
            except EverstepError as error:
                self._drop()
                await self._pause(error)
            except BaseException:
                self._drop()
                if self._over and not _is_cancelled():
                    raise StopAsyncIteration from None
                raise
        return self._waiting.popleft()

    def close(self) -> None:
        """Ends the stream; whoever iterates has seen the last event."""
        self._over = True
        self._waiting.clear()
        self._drop()

    def __del__(self) -> None:
        # At the end of the event loop the stream may be gone with it.
        with contextlib.suppress(RuntimeError):
            self._drop()

    async def _read(self) -> None:
        """Takes what comes next, or sees that nothing will."""
        if self._stream is None:
            self._stream = self._connection.open(self._cursor.call())
        response = await self._next_response(self._stream)
        if response is not None:
            self._waiting.extend(self._cursor.take(response))
            return
        self._drop()
        operation = await self._connection.ask(get_operation(self._cursor.operation_id))
        if not self._cursor.ended and operation.state not in FINAL_STATES:
            raise broken_off()
        self._over = True

    async def _next_response(self, stream: WatchStream) -> WatchOperationResponse | None:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                response = await stream.read()
        except TimeoutError:
            raise silent() from None
        except grpc.aio.AioRpcError as failure:
            raise call_error(failure, self._connection.address) from None
        return response if isinstance(response, WatchOperationResponse) else None

    async def _pause(self, error: EverstepError) -> None:
        seconds = self._cursor.pause_seconds(error)
        self._interrupted(error, self._cursor.failures)
        await asyncio.sleep(seconds)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def _is_cancelled() -> bool:
    """Whether the task that runs is to end, and not its stream alone."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
