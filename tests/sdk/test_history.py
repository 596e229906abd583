"""The history of a training that went back: an epoch that is trained again counts once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from everstep import EpochCompleted, Event, PhaseChanged, Position
from everstep.sdk.history import History
from everstep.sdk.operations import Phase


def common(attempt: int, step: int) -> dict[str, Any]:
    return {
        "operation_id": "op-1",
        "sequence": 1,
        "time": datetime(2026, 11, 24, tzinfo=UTC),
        "attempt": attempt,
        "position": Position(step // 10, 4, step % 10, 10, step, 40, step / 40, None),
    }


def epoch(attempt: int, number: int) -> Event:
    at_end = common(attempt, 10 * (number + 1))
    return EpochCompleted(number, {"loss": 1.0 / attempt}, 0.1, False, 1.0, **at_end)


def trains(attempt: int, step: int) -> Event:
    return PhaseChanged(Phase.TRAINING, 1, **common(attempt, step))


def epochs(history: History) -> list[tuple[int, int]]:
    return [(record.epoch, record.attempt) for record in history.records()]


def test_going_back_takes_back_what_is_trained_again() -> None:
    history = History()
    for event in (epoch(1, 0), epoch(1, 1), epoch(1, 2), trains(1, 35)):
        history.take(event)
    assert epochs(history) == [(0, 1), (1, 1), (2, 1)]
    history.take(PhaseChanged(Phase.PREPARING, 0, **common(2, 0)))
    assert epochs(history) == [(0, 1), (1, 1), (2, 1)]
    history.take(trains(2, 14))
    assert epochs(history) == [(0, 1)]
    history.take(epoch(2, 1))
    assert epochs(history) == [(0, 1), (1, 2)]
    assert [record.metrics["loss"] for record in history.records()] == [1.0, 0.5]
