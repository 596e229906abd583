"""Watchers that never leave: what each saw of its operation, and how far all are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from everstep.errors import EverstepError
from everstep.sdk import Client, Event, EventStream, PhaseChanged, StepMetrics

#: Seconds between looks at an operation that has ended: it may be resumed.
LOOK_SECONDS: Final = 0.3


class Progress:
    """Counts what all watchers see, so that a fault can come after so many events."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._durable = 0

    @property
    def durable(self) -> int:
        return self._durable

    def told(self, event: Event) -> None:
        """A watcher saw this."""
        with self._changed:
            self._durable += event.is_durable
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition held in time; looked at after each event."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, LOOK_SECONDS))
        return True


class Watcher:
    """Watches one operation over a client's link, from its first event until closed."""

    def __init__(self, client: Client, operation_id: str, progress: Progress) -> None:
        self.operation_id = operation_id
        #: Every durable event, in the order in which it came.
        self.seen: list[Event] = []
        #: What the SDK gave up with; it has to go on by itself over every fault.
        self.errors: list[EverstepError] = []
        #: The newest attempt that was seen to train, its process, and its step.
        self.attempt = 0
        self.process_id = 0
        self.step = 0
        #: Steps that were seen, transient ones too.
        self.steps = 0
        #: When the newest step, restart or other event of any kind was seen, by the steady clock.
        self.last_heard = time.monotonic()
        self._handle = client.operation(operation_id)
        self._progress = progress
        self._closing = threading.Event()
        self._stream: EventStream | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def sequence(self) -> int:
        """Of the newest durable event."""
        return self.seen[-1].sequence if self.seen else 0

    def close(self) -> None:
        """Ends the watch."""
        self._closing.set()
        if self._stream is not None:
            self._stream.close()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._stream = self._handle.events(self.sequence)
            try:
                for event in self._stream:
                    self._take(event)
            except EverstepError as error:
                if not self._closing.is_set():
                    self.errors.append(error)
            self._closing.wait(LOOK_SECONDS)

    def _take(self, event: Event) -> None:
        if event.is_durable:
            self.seen.append(event)
        if isinstance(event, PhaseChanged):
            self.process_id = event.process_id
        elif isinstance(event, StepMetrics):
            self.attempt, self.step = event.attempt, event.position.step
            self.steps += 1
        self.last_heard = time.monotonic()
        self._progress.told(event)
