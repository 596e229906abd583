"""Each promise of a log, broken on purpose: its check says so."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import NonCallableMock

import pytest

from checkpoint_store import open_blob_store
from checkpoint_store.digests import blob_digest, blob_key
from everstep.sdk import (
    Attempt,
    Event,
    Operation,
    OperationState,
    Position,
    StateChanged,
    StepMetrics,
    TrainingRestarted,
)
from tests.chaos.checks import (
    Check,
    Ending,
    Outcome,
    exact,
    no_event_lost,
    nothing_stuck,
    nothing_unpickled,
    one_runner,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WANTED = {"weights": "a", "state": "b"}


def common(sequence: int, attempt: int) -> dict[str, Any]:
    return {"operation_id": "op", "sequence": sequence, "time": NOW, "attempt": attempt}


def changed(sequence: int, attempt: int, to: OperationState, reason: str) -> StateChanged:
    before = OperationState.UNKNOWN
    return StateChanged(to, before, reason, "", **common(sequence, attempt))


def stepped(sequence: int, attempt: int, step: int) -> StepMetrics:
    position = Position(0, 1, step, 100, step, 100, step / 100, None)
    return StepMetrics(0.5, 0.1, 9.0, None, position=position, **common(sequence, attempt))


#: Two attempts, the first of which is lost.
LOG: list[Event] = [
    changed(1, 0, OperationState.PENDING, "CREATED"),
    changed(2, 1, OperationState.RUNNING, "DISPATCHED"),
    stepped(3, 1, 10),
    changed(4, 1, OperationState.PENDING, "ATTEMPT_LOST"),
    changed(5, 2, OperationState.RUNNING, "DISPATCHED"),
    stepped(6, 2, 10),
    stepped(7, 2, 20),
    changed(8, 2, OperationState.COMPLETED, "COMPLETED"),
]


def attempt(number: int, began: int, ended: int | None, end: str) -> Attempt:
    minutes = [NOW + timedelta(minutes=at) if at is not None else None for at in (began, ended)]
    assert minutes[0] is not None
    return Attempt(number, "trainer-1", minutes[0], minutes[1], 1, 10, end, "", 0)


def ending(tmp_path: Path, **broken: Any) -> Ending:
    """One operation to which all that is broken was done; else it is as it should be."""
    values: dict[str, Any] = {
        "state": OperationState.COMPLETED,
        "digests": WANTED,
        "replay": LOG,
        "seen": LOG,
        "errors": [],
        "attempts": (attempt(1, 0, 1, "LOST"), attempt(2, 1, 2, "COMPLETED")),
        "left_cancelled": False,
        "still_running": [],
        **broken,
    }
    operation = NonCallableMock(spec=Operation, id="op", last_sequence=8, failure=None)
    operation.state, operation.attempts = values["state"], values["attempts"]
    operation.waiting_for = "a trainer"
    operation.result = NonCallableMock(digests=values["digests"], steps=100)
    watcher = NonCallableMock(seen=values["seen"], errors=values["errors"])
    outcome = Outcome(operation, values["replay"], watcher, WANTED, values["left_cancelled"])
    store = open_blob_store(f"file://{tmp_path}")
    return Ending([outcome], NonCallableMock(), store, values["still_running"], [])


@pytest.mark.parametrize(
    ("check", "broken", "said"),
    [
        (exact, {"digests": {**WANTED, "state": "c"}}, "op differs in state"),
        (no_event_lost, {"replay": LOG[:3] + LOG[4:]}, "the log is not 1 to 8"),
        (no_event_lost, {"seen": LOG[:-1]}, "a watcher saw 7 events of 8"),
        (no_event_lost, {"seen": [*LOG[:3], LOG[2], *LOG[4:]]}, "the log has"),
        (no_event_lost, {"replay": [*LOG[:6], stepped(7, 2, 5), LOG[7]]}, "fraction went back"),
        (one_runner, {"replay": [*LOG[:4], stepped(5, 1, 11)]}, "attempt 1 speaks at 5"),
        (one_runner, {"replay": [*LOG[:6], stepped(7, 1, 30)]}, "attempt 1 speaks at 7"),
        (one_runner, {"replay": [*LOG[:6], stepped(7, 2, 5)]}, "its step went back at 7"),
        (
            one_runner,
            {"attempts": (attempt(1, 0, 2, "LOST"), attempt(2, 1, 2, "COMPLETED"))},
            "attempt 2 began before 1 had ended",
        ),
        (nothing_stuck, {"state": OperationState.PENDING}, "op is pending"),
        (nothing_stuck, {"state": OperationState.CANCELLED}, "op is cancelled"),
        (nothing_stuck, {"attempts": (attempt(1, 0, None, ""),)}, "attempt 1 has no end"),
        (nothing_stuck, {"still_running": ["attempt 1 of op on trainer-1"]}, "still runs"),
    ],
)
def test_what_is_broken_is_said(
    check: Check, broken: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert list(check(ending(tmp_path))) == []
    assert any(said in violation for violation in check(ending(tmp_path, **broken)))


def test_a_process_that_was_restarted_may_go_back(tmp_path: Path) -> None:
    position = Position(0, 1, 20, 100, 20, 100, 0.2, None)
    restarted = TrainingRestarted(
        "signal SIGKILL", 5, "memory", 1, position=position, **common(8, 2)
    )
    log = [*LOG[:7], restarted, replace(stepped(9, 2, 6), position=replace(position, step=6))]
    assert list(one_runner(ending(tmp_path, replay=log))) == []


def test_what_is_no_safetensors_file_is_said(tmp_path: Path) -> None:
    there = ending(tmp_path)
    there.store.set_up()
    pickled = b"\x80\x04K\x01."
    there.store.put(blob_key(blob_digest(pickled)), pickled)
    assert "is no safetensors file" in next(nothing_unpickled(there))
