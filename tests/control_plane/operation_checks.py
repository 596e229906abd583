"""What holds of every operation at any time: its attempts, and the way that its log tells."""

from __future__ import annotations

from itertools import pairwise

from control_plane.states import TRANSITIONS, Change
from everstep.control.v1.operations_pb2 import Operation, OperationEvent, OperationState
from tests.control_plane.operation_model import FINAL, LEGAL_CHANGES, OPEN, OperationModel


def check_attempts(model: OperationModel, operation: Operation) -> None:
    """Numbered without a gap, one after the other, each ended as the model says."""
    attempts = operation.attempts
    assert [attempt.number for attempt in attempts] == list(range(1, model.attempt + 1))
    assert [attempt.end for attempt in attempts] == model.ends, model
    for earlier, later in pairwise(attempts):
        assert earlier.end_time.ToNanoseconds() <= later.start_time.ToNanoseconds()
    has_open = bool(attempts) and not attempts[-1].end
    assert has_open == (model.state in OPEN)
    assert operation.HasField("end_time") == (model.state in FINAL)


def check_changes(model: OperationModel, log: list[OperationEvent]) -> None:
    """The log is a legal way from nothing to the state; no attempt speaks outside of its time."""
    state, attempt, speaks = "UNSPECIFIED", 0, False
    for event in log:
        if event.HasField("progress"):
            assert (speaks, event.progress.attempt) == (True, attempt), event
            continue
        if not event.HasField("state_changed"):
            continue
        changed = event.state_changed
        before, after = (
            OperationState.Name(value).removeprefix("OPERATION_STATE_")
            for value in (getattr(changed, "from"), changed.to)
        )
        assert before == state, f"{model}: {before} after {state} in the log"
        assert (before, after) in LEGAL_CHANGES[changed.reason], f"{model}: {event}"
        if changed.reason != "CREATED":
            transition = TRANSITIONS[Change(changed.reason)]
            assert before in transition.sources
            assert after == transition.target
        if changed.reason == "DISPATCHED":
            attempt += 1
        assert changed.attempt == attempt, f"{model}: attempt {changed.attempt}, not {attempt}"
        state, speaks = after, after in OPEN
    assert state == model.state, f"{model}: the log ends in {state}"
