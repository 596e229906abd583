"""An operation's events, to iterate over."""

from __future__ import annotations

import logging
from typing import Self

from everstep.calls.async_watch import AsyncWatch
from everstep.calls.watch import Watch
from everstep.errors import EverstepError
from everstep.sdk.event_translation import event
from everstep.sdk.events import Event

_log = logging.getLogger("everstep")


class EventStream:
    """An iterator over an operation's events, to its end; a context manager.

    Every durable event comes once and in order, however often the connection breaks. Leaving a
    loop early, an exception, Ctrl-C and `close()` all end the stream on the service's side, too.

    Raises:
        HistoryCompacted, FutureSequence, OperationNotFound: While iterating.
    """

    def __init__(self, watch: Watch, transient: bool) -> None:
        self._watch = watch
        self._transient = transient

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            message = next(self._watch)
            if message.sequence or self._transient:
                return event(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream."""
        self._watch.close()


class AsyncEventStream:
    """As EventStream, for `async for` and `async with`; a cancelled task ends the stream, too."""

    def __init__(self, watch: AsyncWatch, transient: bool) -> None:
        self._watch = watch
        self._transient = transient

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            message = await anext(self._watch)
            if message.sequence or self._transient:
                return event(message)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream."""
        self._watch.close()


def logged(error: EverstepError, failures: int) -> None:
    """Says in the log that a stream has broken."""
    _log.info("the event stream broke (%s); opening it again, try %d", error, failures)
