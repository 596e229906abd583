"""Where a watch stands: what has come, what comes next, and what becomes of a broken stream."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from everstep.calls.requests import Call, watch_operation
from everstep.control.v1 import operations_pb2
from everstep.control.v1.operations_pb2 import OperationEvent, WatchOperationResponse
from everstep.errors import EverstepError, Reason

#: Called with what broke a watch, and how often it broke since the last word.
Interrupted = Callable[[EverstepError, int], None]

FINAL_STATES: Final = frozenset(
    {
        operations_pb2.OPERATION_STATE_COMPLETED,
        operations_pb2.OPERATION_STATE_FAILED,
        operations_pb2.OPERATION_STATE_CANCELLED,
    }
)
#: Seconds without a word after which a stream is dead: the service says one every 15 seconds.
SILENCE_SECONDS: Final = 45.0
#: What a watch outlives: the service stops, restarts, or cannot be reached.
_PASSING: Final = frozenset(
    {
        Reason.SERVICE_UNAVAILABLE,
        Reason.DRAINING,
        Reason.DATABASE_UNAVAILABLE,
        Reason.CALL_CANCELLED,
    }
)


class WatchCursor:
    """One watch of an operation over all its streams; knows no gRPC and no clock.

    Args:
        after_sequence: The last sequence seen; 0 for all events.
    """

    def __init__(self, operation_id: str, after_sequence: int) -> None:
        self.operation_id = operation_id
        #: The last one that has come.
        self.sequence = after_sequence
        #: Streams that have broken since a word came.
        self.failures = 0
        #: The newest event ended the operation.
        self.ended = False

    def call(self) -> Call[WatchOperationResponse]:
        """The stream of what has not come yet."""
        return watch_operation(self.operation_id, self.sequence)

    def take(self, response: WatchOperationResponse) -> list[OperationEvent]:
        """The events of a response that have not come before, in order.

        Raises:
            EverstepError: INTERNAL when the service has left one out.
        """
        self.failures = 0
        fresh = []
        for event in response.batch.events:
            if event.sequence:
                if event.sequence <= self.sequence:
                    continue
                self._check(event.sequence - 1)
                self.sequence = event.sequence
            if event.HasField("state_changed"):
                self.ended = event.state_changed.to in FINAL_STATES
            fresh.append(event)
        if response.HasField("through_sequence"):
            self._check(response.through_sequence)
        return fresh

    def pause_seconds(self, error: EverstepError) -> float:
        """How long to wait before the stream is opened again: doubled each time, jittered.

        Raises:
            EverstepError: The error itself, when it does not pass by itself.
        """
        if error.reason not in _PASSING:
            raise error from None
        self.failures += 1
        longest: float = min(5.0, 0.2 * 2 ** min(self.failures, 8))
        return longest * (0.5 + random.random() / 2)

    def _check(self, sequence: int) -> None:
        """Everything up to a sequence has come."""
        if sequence > self.sequence:
            raise EverstepError(
                Reason.INTERNAL,
                f"the log of {self.operation_id} came without {self.sequence + 1} to {sequence}; "
                f"watch it again after {self.sequence}",
                metadata={"last_sequence": str(self.sequence)},
            )


def not_told(_error: EverstepError, _failures: int) -> None:
    """For a watch whose breaks interest nobody."""


def silent() -> EverstepError:
    """A stream on which nothing came for too long."""
    return EverstepError(
        Reason.SERVICE_UNAVAILABLE, f"no word for {SILENCE_SECONDS:.0f} s; is the service stuck?"
    )


def late(operation_id: str) -> EverstepError:
    """The caller's own time is over."""
    return EverstepError(
        Reason.DEADLINE_EXCEEDED,
        f"{operation_id} has not come so far in the time it was given; it goes on",
        metadata={"operation_id": operation_id},
    )


def broken_off() -> EverstepError:
    """A stream that ended in good order, though the operation goes on."""
    return EverstepError(Reason.SERVICE_UNAVAILABLE, "the stream ended before the operation did")
