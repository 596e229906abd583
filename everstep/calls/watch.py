"""A watch that takes itself up again."""

from __future__ import annotations

import threading
import time
from collections import deque

import grpc

from everstep.calls.connection import Connection, ResponseStream
from everstep.calls.cursor import (
    FINAL_STATES,
    SILENCE_SECONDS,
    Interrupted,
    WatchCursor,
    broken_off,
    late,
    not_told,
    silent,
)
from everstep.calls.failures import call_error
from everstep.calls.requests import get_operation
from everstep.control.v1.operations_pb2 import OperationEvent, WatchOperationResponse
from everstep.errors import EverstepError, Reason


class Watch:
    """An operation's events: every durable one once and in order, of transient ones the newest.

    An iterator. A stream that breaks, or on which nothing comes for too long, is opened again after
    the last event; what does not pass by itself is raised. Left alone or closed, it leaves no
    stream open.

    Args:
        after_sequence: The last one seen; 0 for all.
        interrupted: Called each time the stream breaks.
        seconds: How long it may take in all; then DEADLINE_EXCEEDED.
    """

    def __init__(
        self,
        connection: Connection,
        operation_id: str,
        after_sequence: int = 0,
        interrupted: Interrupted = not_told,
        seconds: float | None = None,
    ) -> None:
        self._connection = connection
        self._cursor = WatchCursor(operation_id, after_sequence)
        self._interrupted = interrupted
        self._end = None if seconds is None else time.monotonic() + seconds
        self._stream: ResponseStream[WatchOperationResponse] | None = None
        self._waiting: deque[OperationEvent] = deque()
        self._over = False

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> OperationEvent:
        while not self._waiting:
            if self._over:
                raise StopIteration
            try:
                self._read()
            except EverstepError as error:
                self._drop()
                if self._over:
                    raise StopIteration from None
                self._pause(error)
            except BaseException:
                self._drop()
                raise
        return self._waiting.popleft()

    def close(self) -> None:
        """Ends the stream; whoever iterates has seen the last event."""
        self._over = True
        self._waiting.clear()
        self._drop()

    def __del__(self) -> None:
        # gRPC cancels what is forgotten, but promises it nowhere.
        self._drop()

    def _read(self) -> None:
        """Takes what comes next, or sees that nothing will."""
        if self._stream is None:
            self._stream = self._connection.open(self._cursor.call())
        response = self._next_response(self._stream)
        if response is not None:
            self._waiting.extend(self._cursor.take(response))
            return
        self._drop()
        operation = get_operation(self._cursor.operation_id)
        if not self._cursor.ended and self._connection.ask(operation).state not in FINAL_STATES:
            raise broken_off()
        self._over = True

    def _next_response(
        self, stream: ResponseStream[WatchOperationResponse]
    ) -> WatchOperationResponse | None:
        seconds = min(SILENCE_SECONDS, self._seconds_left())
        # A read of gRPC's has no deadline of its own.
        timer = threading.Timer(seconds, stream.cancel)
        timer.daemon = True
        began = time.monotonic()
        timer.start()
        try:
            return next(stream, None)
        except grpc.RpcError as failure:
            error = call_error(failure, self._connection.address)
            if error.reason is Reason.CALL_CANCELLED and time.monotonic() - began >= seconds:
                raise (silent() if seconds == SILENCE_SECONDS else self._late()) from None
            raise error from None
        finally:
            timer.cancel()

    def _pause(self, error: EverstepError) -> None:
        seconds = self._cursor.pause_seconds(error)
        self._interrupted(error, self._cursor.failures)
        time.sleep(min(seconds, self._seconds_left()))

    def _seconds_left(self) -> float:
        if self._end is None:
            return float("inf")
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> EverstepError:
        return late(self._cursor.operation_id)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
