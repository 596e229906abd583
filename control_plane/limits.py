"""How much a control plane takes on: beyond that callers are refused, and told why."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, TypeVar

from sqlalchemy import Connection

from control_plane.database import queue
from control_plane.states import State
from everstep.errors import EverstepError, Reason

T = TypeVar("T")

#: Operations that may wait for a trainer, where no setting says otherwise.
MAX_QUEUED: Final = 10_000


def check_queue(connection: Connection, max_queued: int) -> None:
    """Refuses one more operation for the queue; those that lost an attempt always come back.

    Raises:
        EverstepError: QUEUE_FULL.
    """
    queued = queue.count(connection, State.PENDING)
    if queued >= max_queued:
        raise EverstepError(
            Reason.QUEUE_FULL,
            f"{queued} operations wait for a trainer, and {max_queued} may; start more trainers, "
            "try again later, or raise EVERSTEP_MAX_QUEUED",
            metadata={"max_queued": str(max_queued)},
        )


class WatchLimit:
    """Counts the watches that are open.

    Args:
        most: Of them at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    async def limited(self, responses: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """A watch, as one of those that are counted.

        Raises:
            EverstepError: TOO_MANY_WATCHES, before its first response.
        """
        if self._open >= self._most:
            raise EverstepError(
                Reason.TOO_MANY_WATCHES,
                f"{self._open} watches are open, and {self._most} may be; end some, watch at "
                "another control plane, or raise EVERSTEP_MAX_WATCHES",
                metadata={"max_watches": str(self._most)},
            )
        self._open += 1
        try:
            async with aclosing(responses):
                async for response in responses:
                    yield response
        finally:
            self._open -= 1
