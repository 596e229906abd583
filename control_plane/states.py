"""The states of an operation, and the one table of the changes between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from everstep.control.v1.operations_pb2 import OperationState


class State(StrEnum):
    """Where an operation stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def message(self) -> OperationState.ValueType:
        """The state in the contract's words."""
        return OperationState.Value(f"OPERATION_STATE_{self.value}")

    @classmethod
    def of_message(cls, state: OperationState.ValueType) -> State:
        """The state that a message names; ValueError for UNSPECIFIED."""
        return cls(OperationState.Name(state).removeprefix("OPERATION_STATE_"))


#: Nothing more happens to an operation in these, unless it is resumed.
FINAL_STATES: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
#: An attempt is open in these.
ATTEMPT_STATES: Final = frozenset({State.RUNNING, State.CANCELLING})


class Change(StrEnum):
    """A change of state; the name is the reason that StateChanged carries."""

    DISPATCHED = "DISPATCHED"
    #: The trainer did not take it: full, or about to stop.
    REFUSED = "REFUSED"
    ATTEMPT_LOST = "ATTEMPT_LOST"
    #: The trainer stops; another one goes on.
    HANDED_OVER = "HANDED_OVER"
    #: The checkpoint could not be read; an older one is taken.
    CHECKPOINT_SKIPPED = "CHECKPOINT_SKIPPED"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    CANCELLED_IN_QUEUE = "CANCELLED_IN_QUEUE"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    RESUMED = "RESUMED"
    #: Resumed after it was completed, with more epochs.
    EXTENDED = "EXTENDED"


@dataclass(frozen=True)
class Transition:
    """The states a change may begin in, and the one it ends in."""

    sources: frozenset[State]
    target: State


def _transition(target: State, *sources: State) -> Transition:
    return Transition(frozenset(sources), target)


#: Every change there is. A training may complete or fail while it is asked to stop.
TRANSITIONS: Final[Mapping[Change, Transition]] = {
    Change.DISPATCHED: _transition(State.RUNNING, State.PENDING),
    Change.REFUSED: _transition(State.PENDING, State.RUNNING),
    Change.ATTEMPT_LOST: _transition(State.PENDING, State.RUNNING),
    Change.HANDED_OVER: _transition(State.PENDING, State.RUNNING),
    Change.CHECKPOINT_SKIPPED: _transition(State.PENDING, State.RUNNING),
    Change.CANCEL_REQUESTED: _transition(State.CANCELLING, State.RUNNING),
    Change.CANCELLED_IN_QUEUE: _transition(State.CANCELLED, State.PENDING),
    Change.CANCELLED: _transition(State.CANCELLED, State.RUNNING, State.CANCELLING),
    Change.COMPLETED: _transition(State.COMPLETED, State.RUNNING, State.CANCELLING),
    Change.FAILED: _transition(State.FAILED, State.RUNNING, State.CANCELLING),
    Change.RESUMED: _transition(State.PENDING, State.FAILED, State.CANCELLED),
    Change.EXTENDED: _transition(State.PENDING, State.COMPLETED),
}
