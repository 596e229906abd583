"""An event loop whose clock is a number, and the processes that live in it.

Nothing waits: when nothing is ready, the clock jumps to the next timer. What would run in a thread
runs in the loop, begun and ended after delays drawn from the seed; a blocking call of the
simulation gives way to others in the middle of it. The order of callbacks that the loop itself
promises (first in, first out) is kept; which of two threads or messages comes first is drawn.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

#: The process that a callback belongs to; None: the simulation itself.
PROCESS: Final[ContextVar[Process | None]] = ContextVar("process", default=None)
#: Seconds of the longest wait for a thread to begin, and to be noticed when it has ended.
THREAD_SECONDS: Final = 0.002


class Process:
    """What is killed, suspended and started as one.

    Args:
        name: As in `trainer-1`; the next one of the name is another process.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.suspended = False
        #: What its callbacks run in.
        self.context = copy_context()
        self.context.run(PROCESS.set, self)
        #: What fell due while it was suspended.
        self.held: deque[asyncio.Handle] = deque()
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.threads: dict[greenlet, None] = {}
        #: Set by a signal to stop.
        self.stop = asyncio.Event()


class Stalled(Exception):
    """Nothing is ready, and no timer runs: nothing will ever happen again."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs on a clock of its own.

    Args:
        draw: Delays of threads come from here.
    """

    # What BaseEventLoop keeps its callbacks in.
    _ready: deque[Any]
    _scheduled: list[Any]

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self._now = 0.0
        self._draw = draw
        #: When a thread of an executor with one worker was last begun.
        self._begun: dict[Any, float] = {}
        #: Callbacks that were run.
        self.steps = 0
        self.set_task_factory(_make_task)
        #: What no task and no callback was there to take.
        self.failures: list[str] = []
        self.set_exception_handler(lambda _, context: self.failures.append(_told(context)))

    def time(self) -> float:
        return self._now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Runs a call as in a thread; without an executor, one that may block on the way."""
        process = PROCESS.get()
        future: asyncio.Future[T] = self.create_future()
        if process is not None and not process.alive:
            future.cancel()
            return future
        begin = self._now + self._draw.uniform(0, THREAD_SECONDS)
        if executor is not None and executor._max_workers == 1:
            begin = max(begin, self._begun.get(executor, 0.0) + 1e-6)
            self._begun[executor] = begin
        run = _Thread(self, process, future, func, args)
        self.call_at(begin, run.begin if executor is not None else run.begin_blocking)
        return future

    def thread_delay(self) -> float:
        """Until it is noticed that a thread has ended."""
        return self._draw.uniform(0, THREAD_SECONDS)

    def block(self, seconds: float) -> None:
        """Lets so much time pass in a thread, and others run."""
        thread = getcurrent()
        if thread.parent is None:
            return
        self.call_later(seconds, thread.switch)
        thread.parent.switch()

    def start(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> Process:
        """A process that runs a coroutine."""
        process = Process(name)
        self.create_task(main(), context=process.context)
        return process

    def kill(self, process: Process) -> None:
        """Ends a process where it stands; nothing that it still does is seen by anyone."""
        self.resume(process)
        process.alive = False
        for thread in list(process.threads):
            thread.throw(GreenletExit)
        for task in list(process.tasks):
            task.cancel()

    def suspend(self, process: Process) -> None:
        """Stops a process as SIGSTOP does."""
        process.suspended = True

    def resume(self, process: Process) -> None:
        """Lets a suspended process run on; its timers may be long overdue."""
        process.suspended = False
        self._ready.extend(process.held)
        process.held.clear()

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise Stalled
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and process.suspended:
                process.held.append(handle)
                continue
            self.steps += 1
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled ones are dropped when they fall due."""

    def _write_to_self(self) -> None:
        """There is no other thread to be woken from."""

    def _process_events(self, event_list: object) -> None:
        """There are no files to wait for."""


class _Thread:
    """One call in a thread of a process."""

    def __init__(
        self,
        loop: SimulatedLoop,
        process: Process | None,
        future: asyncio.Future[Any],
        func: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._loop, self._process, self._future = loop, process, future
        self._func, self._args = func, args
        self._error: BaseException | None = None
        self._result: Any = None

    def begin(self) -> None:
        """Runs a call that takes no time."""
        if self._alive and not self._future.cancelled():
            self._run()

    def begin_blocking(self) -> None:
        """Runs a call that may block."""
        if not self._alive or self._future.cancelled():
            return
        thread = greenlet(self._run_blocking)
        thread.gr_context = copy_context()
        if self._process is not None:
            self._process.threads[thread] = None
        thread.switch()

    @property
    def _alive(self) -> bool:
        return self._process is None or self._process.alive

    def _run_blocking(self) -> None:
        try:
            self._run()
        finally:
            if self._process is not None:
                self._process.threads.pop(getcurrent(), None)

    def _run(self) -> None:
        try:
            self._result = self._func(*self._args)
        except GreenletExit:
            return
        except Exception as error:
            self._error = error
        self._loop.call_later(self._loop.thread_delay(), self._end)

    def _end(self) -> None:
        if self._future.done():
            return
        if not self._alive:
            self._future.cancel()
        elif self._error is not None:
            self._future.set_exception(self._error)
        else:
            self._future.set_result(self._result)


def _make_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T] | Generator[Any, None, T],
    context: Context | None = None,
) -> asyncio.Task[T]:
    task = asyncio.Task(work, loop=loop, context=context)
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(lambda ended: process.tasks.pop(ended, None))
        if not process.alive:
            task.cancel()
    return task


def _told(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context['message']}: {type(error).__name__}: {error}" if error else context["message"]
