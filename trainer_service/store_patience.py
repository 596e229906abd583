"""How long a training waits for a store that fails it, and how often it asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import structlog

from everstep.errors import EverstepError, Reason
from everstep.training.v1.progress_pb2 import TrainingProgress, Warning
from trainer_service.progress import AttemptProgress

_log = structlog.get_logger(__name__)

Result = TypeVar("Result")

#: What a person, or time, can mend while a training waits.
STORE_TROUBLE: Final = frozenset(
    {
        Reason.STORE_UNAVAILABLE,
        Reason.STORE_FULL,
        Reason.STORE_ACCESS_DENIED,
        Reason.STORE_MISCONFIGURED,
    }
)
#: Between tries; doubled each time: a folder fails at once, and a full store after every byte.
FIRST_PAUSE_SECONDS: Final = 1.0
LAST_PAUSE_SECONDS: Final = 30.0


class AttemptStopped(Exception):
    """The attempt is to end, so nothing is waited for."""


class Pauses:
    """The seconds between the tries of an outage."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE_SECONDS

    def next(self, deadline: float | None = None) -> float:
        """The next pause; it ends by the deadline, which is on the monotonic clock."""
        pause, self._next = self._next, min(self._next * 2, LAST_PAUSE_SECONDS)
        return pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))


def first_kept(first: EverstepError | None, last: EverstepError) -> EverstepError:
    """The error that an outage ends with: its first, and what came of it."""
    if first is None or first.reason is last.reason:
        return last
    return EverstepError(first.reason, f"{first.message}; then {last.reason}: {last.message}")


def in_own_thread(call: Callable[[], Result]) -> asyncio.Future[Result]:
    """As asyncio.to_thread, for what may be abandoned: it holds up no other call and no exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(future.set_result, call())
        except Exception as error:
            settle = partial(future.set_exception, error)
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if future.done() else settle())

    threading.Thread(target=run, name="store", daemon=True).start()
    return future


class StorePatience:
    """Calls that an attempt cannot go on without: tried again while the store fails.

    Args:
        progress: Is told, once, what is waited for.
        seconds: How long, of one call.
        stopping: Set when the attempt is to end: nothing is waited for then.
    """

    def __init__(self, progress: AttemptProgress, seconds: float, stopping: asyncio.Event) -> None:
        self._progress = progress
        self._seconds = seconds
        self._stopping = stopping

    async def run(
        self, call: Callable[[], Result], trouble: Collection[Reason] = STORE_TROUBLE
    ) -> Result:
        """What the call returns, in a thread.

        Args:
            call: Blocks; leaves nothing behind when it fails. It may outlive the attempt.
            trouble: The reasons for which it is tried again.

        Raises:
            EverstepError: The call's first, when it failed until the patience ended.
            AttemptStopped: When the attempt is to end before the call has.
        """
        deadline = time.monotonic() + self._seconds
        pauses = Pauses()
        first: EverstepError | None = None
        while True:
            try:
                return await self._unless_stopped(in_own_thread(call))
            except EverstepError as error:
                if error.reason not in trouble:
                    raise
                if first is None:
                    await self._tell(error)
                first = first or error
            if time.monotonic() >= deadline:
                raise first
            await self._unless_stopped(asyncio.sleep(pauses.next(deadline)))

    async def _unless_stopped(self, work: Awaitable[Result]) -> Result:
        """What the work returns; a store that hangs must not hold up an end."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                raise AttemptStopped
            return await working
        finally:
            for task in (working, stopping):
                task.cancel()
            # Nobody wants what an abandoned thread raises.
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _tell(self, error: EverstepError) -> None:
        _log.warning("waiting for the store", reason=error.reason, message=error.message)
        message = f"waiting for up to {self._seconds:g} s: {error.message}"
        await self._progress.publish(
            TrainingProgress(warning=Warning(reason=error.reason.value, message=message))
        )
