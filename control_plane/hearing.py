"""The clocks of one attempt: when its trainer was reached, and when its training was heard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from control_plane.database.attempts import AttemptRecord
from control_plane.liveness import STALLED_LEASES, UNREACHABLE_LEASES, Liveness
from everstep.training.v1.progress_pb2 import TrainingProgress

#: A trainer whose heartbeat comes, and which was never reached for an attempt, is given up after so
#: many leases: its address is wrong.
UNREACHED_LEASES: Final = 4


class Hearing:
    """Tells a connection that is broken from a training that is silent, and both from all well.

    Args:
        lease_seconds: Of trainers.
        unreachable_seconds: How long a trainer that was reached before may be out of reach, while
            its heartbeat comes; its training goes on meanwhile.
    """

    def __init__(self, lease_seconds: float, unreachable_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._unreachable_seconds = unreachable_seconds
        self._reached_time = self._heard_time = time.monotonic()
        #: When the connection broke, unless it was opened again since.
        self._broken_time: float | None = None
        self._was_reached = False
        #: Before its first step a training may well be silent.
        self._trains = False

    def follows(self, attempt: AttemptRecord) -> None:
        """What was heard of the attempt before, by this follower or another."""
        self._was_reached |= attempt.cursor > 0
        self._trains |= attempt.last_step > 0

    def opened(self) -> None:
        """The trainer has the stream; its training may be silent for long."""
        self._reached_time = time.monotonic()
        self._broken_time = None
        self._was_reached = True

    def heard(self, words: Sequence[TrainingProgress]) -> None:
        """Words have come."""
        self.opened()
        self._heard_time = self._reached_time
        self._trains |= any(word.position.step > 0 for word in words)

    def broke(self) -> None:
        """The stream broke, or could not be opened."""
        if self._broken_time is None:
            self._broken_time = time.monotonic()

    @property
    def unreached_seconds(self) -> float:
        """Since the last sign from the trainer on a stream."""
        return time.monotonic() - self._reached_time

    @property
    def is_given_up(self) -> bool:
        """Whether the connection is broken for longer than it may be."""
        patience = UNREACHED_LEASES * self._lease_seconds
        if self._was_reached:
            patience = max(patience, self._unreachable_seconds)
        return self._broken_seconds > patience

    def liveness(self) -> tuple[Liveness, float]:
        """What is heard of the attempt, and for how many seconds it has been so."""
        if self._broken_seconds > UNREACHABLE_LEASES * self._lease_seconds:
            return Liveness.UNREACHABLE, self._broken_seconds
        silent_seconds = time.monotonic() - self._heard_time
        if self._trains and silent_seconds > STALLED_LEASES * self._lease_seconds:
            return Liveness.STALLED, silent_seconds
        return Liveness.HEARD, 0.0

    @property
    def _broken_seconds(self) -> float:
        return 0.0 if self._broken_time is None else time.monotonic() - self._broken_time
