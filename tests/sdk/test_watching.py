"""Watching through the SDK: whatever becomes of streams, each event comes once and in order."""

from __future__ import annotations

import pytest

from everstep import (
    EverstepError,
    FutureSequence,
    HistoryCompacted,
    OperationNotFound,
    OperationState,
    Reason,
    StateChanged,
    TrainingWarning,
    UnknownEvent,
)
from tests.sdk.conftest import Read
from tests.sdk.scripted_control_plane import (
    ScriptedControlPlane,
    Silence,
    end,
    events,
    mark,
    unknown,
)

DRAINING = EverstepError(Reason.DRAINING, "the control plane stops; watch again")
AWAY = EverstepError(Reason.DATABASE_UNAVAILABLE, "the database does not answer")


def test_a_broken_stream_is_taken_up_after_the_last_event(
    control_plane: ScriptedControlPlane, read: Read
) -> None:
    control_plane.scripts += [
        [events(1, 2), events(0, 3), DRAINING],
        [AWAY],
        [mark(3), events(4), DRAINING],
        [end(5)],
    ]
    found = read()
    assert [event.sequence for event in found] == [1, 2, 0, 3, 4, 5]
    assert control_plane.watched == [0, 3, 3, 4]
    last = found[-1]
    assert isinstance(last, StateChanged)
    assert last.to is OperationState.COMPLETED


def test_what_comes_twice_is_given_once(control_plane: ScriptedControlPlane, read: Read) -> None:
    control_plane.scripts += [[events(1, 2), DRAINING], [events(1, 2, 3), end(4)]]
    assert [event.sequence for event in read()] == [1, 2, 3, 4]


@pytest.mark.parametrize("wrong", [events(4), mark(4)])
def test_an_event_that_is_left_out_is_an_error(
    control_plane: ScriptedControlPlane, read: Read, wrong: object
) -> None:
    control_plane.scripts += [[events(1, 2), wrong]]
    with pytest.raises(EverstepError, match="without 3 to ") as caught:
        read()
    assert caught.value.reason is Reason.INTERNAL


def test_a_silent_stream_is_opened_again(
    control_plane: ScriptedControlPlane, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("watch", "async_watch"):
        monkeypatch.setattr(f"everstep.calls.{module}.SILENCE_SECONDS", 0.2)
    control_plane.scripts += [[events(1), Silence.FOR_EVER], [end(2)]]
    assert [event.sequence for event in read()] == [1, 2]
    assert control_plane.watched == [0, 1]


def test_a_stream_that_ends_before_the_operation_is_opened_again(
    control_plane: ScriptedControlPlane, read: Read
) -> None:
    control_plane.scripts += [[events(1)], [end(2)]]
    assert [event.sequence for event in read()] == [1, 2]


def test_nothing_new_of_an_ended_operation_is_nothing(
    control_plane: ScriptedControlPlane, read: Read
) -> None:
    control_plane.state = 4
    control_plane.scripts += [[]]
    assert read(9) == []
    assert control_plane.watched == [9]


def test_a_compacted_log_says_where_it_begins(
    control_plane: ScriptedControlPlane, read: Read
) -> None:
    compacted = EverstepError(
        Reason.HISTORY_COMPACTED, "the log begins at 7", metadata={"first_sequence": "7"}
    )
    control_plane.scripts += [[compacted], [events(7), end(8)]]
    with pytest.raises(HistoryCompacted) as caught:
        read()
    assert caught.value.first_sequence == 7
    assert [e.sequence for e in read(caught.value.first_sequence - 1)] == [7, 8]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.OPERATION_NOT_FOUND, OperationNotFound),
        (Reason.FUTURE_SEQUENCE, FutureSequence),
        (Reason.INTERNAL, EverstepError),
    ],
)
def test_what_does_not_pass_is_raised(
    control_plane: ScriptedControlPlane, read: Read, reason: Reason, kind: type[EverstepError]
) -> None:
    control_plane.scripts += [[EverstepError(reason, "no")]]
    with pytest.raises(kind) as caught:
        read()
    assert caught.value.reason is reason


def test_transient_events_may_be_left_out(control_plane: ScriptedControlPlane, read: Read) -> None:
    control_plane.scripts += [[events(1, 0, 2), end(3)]]
    assert [event.sequence for event in read(transient=False)] == [1, 2, 3]


def test_events_of_a_newer_service_take_their_place(
    control_plane: ScriptedControlPlane, read: Read
) -> None:
    control_plane.scripts += [[events(1), unknown(2), end(3)]]
    first, second, _ = read()
    assert isinstance(first, TrainingWarning)
    assert type(second) is UnknownEvent
