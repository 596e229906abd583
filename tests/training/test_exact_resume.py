"""Trained, cut off and resumed: the checks, and the same bytes from every step on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from tests.training import checks
from tests.training.runs import Laboratory, Snapshot
from tests.training.scenarios import (
    AVERAGED,
    EVERY_SCENARIO,
    EVERYTHING,
    KEEPING,
    NOISY,
    PLAIN,
    Scenario,
)
from trainer_service.child.cadence import CheckpointPolicy
from trainer_service.child.events import CancellationToken, Stop, TrainingStopped
from trainer_service.child.optimization import Optimization
from trainer_service.child.randomness import epoch_order


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_check(check: checks.Check) -> None:
    check(Laboratory())


@pytest.mark.parametrize("scenario", EVERY_SCENARIO, ids=lambda scenario: scenario.name)
def test_resumed_after_any_step(scenario: Scenario) -> None:
    checks.ends_in_the_same_bytes(Laboratory(), scenario)


def test_cut_again_and_again() -> None:
    """One step at a time, each in a fresh trainer."""
    lab = Laboratory()
    whole = lab.train(EVERYTHING)
    snapshot = whole.snapshots[0]
    while snapshot.trigger != "FINAL":
        snapshot = lab.resume(EVERYTHING, snapshot.context()).snapshots[0]
    assert snapshot.content() == whole.final.content()


class Looks(CancellationToken):
    """Says stop when it is looked at for the n-th time."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.left = last

    @property
    def stop(self) -> Stop | None:
        self.left -= 1
        return Stop.CANCEL if self.left == 0 else None


@pytest.mark.parametrize("scenario", [EVERYTHING, NOISY, KEEPING, AVERAGED], ids=lambda s: s.name)
def test_stopped_wherever_it_may_be(scenario: Scenario) -> None:
    """After each step and in each batch of each evaluation, also by code that draws there."""
    lab = Laboratory()
    whole = lab.train(scenario)
    looks = 0
    while True:
        looks += 1
        kept: list[Snapshot] = []
        try:
            lab.train(scenario, token=Looks(looks), kept=kept)
        except TrainingStopped:
            assert kept[-1].trigger == "CANCELLATION"
            resumed = lab.resume(scenario, kept[-1].context())
            assert resumed.final.content() == whole.final.content(), looks
        else:
            break
    assert looks > scenario.epochs * (scenario.steps_per_epoch + 3)


def failing_at(call: int) -> Callable[..., float]:
    """Gradients that fail once they are there, at their n-th time."""
    calls, accumulate = count(1), Optimization.accumulate

    def failing(*arguments: Any) -> float:
        loss = accumulate(*arguments)
        if next(calls) == call:
            raise RuntimeError("out of memory")
        return loss

    return failing


@pytest.mark.parametrize("scenario", [EVERYTHING, NOISY, KEEPING, PLAIN], ids=lambda s: s.name)
def test_a_failed_step_leaves_a_state_to_go_on_from_or_none(scenario: Scenario) -> None:
    """The checkpoint of a failure is that of the last whole step; where it cannot be, none is."""
    lab = Laboratory()
    whole = lab.train(scenario)
    seldom = CheckpointPolicy(every_epochs=0)
    for call in (1, 2, 9, 10):
        kept: list[Snapshot] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Optimization, "accumulate", failing_at(call))
            with pytest.raises(RuntimeError):
                lab.train(scenario, kept=kept, checkpoint=seldom)
        assert bool(kept) == (scenario is PLAIN)
        for snapshot in kept:
            resumed = lab.resume(scenario, snapshot.context())
            assert resumed.final.content() == whole.final.content()


def test_saving_changes_no_bytes() -> None:
    lab = Laboratory()
    often = lab.train(EVERYTHING)
    never = lab.train(EVERYTHING, checkpoint=CheckpointPolicy(every_epochs=0))
    assert [snapshot.trigger for snapshot in never.snapshots] == ["FINAL"]
    assert never.final.content() == often.final.content()


def test_more_epochs_go_on_as_if_they_had_been_asked_for_at_first() -> None:
    lab = Laboratory()
    short = lab.train(PLAIN, epochs=2)
    extended = lab.resume(PLAIN, short.final.context(), epochs=4)
    assert extended.epochs == [2, 3]
    assert extended.final.content() == lab.train(PLAIN, epochs=4).final.content()


def test_worker_processes_change_no_bytes() -> None:
    lab = Laboratory()
    whole = lab.train(PLAIN, epochs=2)
    resumed = lab.resume(PLAIN, whole.at_step(9).context(), epochs=2, workers=1)
    assert resumed.final.content() == whole.final.content()


def test_an_epoch_has_an_order_of_its_own() -> None:
    first, second = (epoch_order(50, 7, epoch).tolist() for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))
    assert epoch_order(50, 7, 1).tolist() == second
    assert epoch_order(50, 8, 1).tolist() != second


@pytest.mark.parametrize(
    ("policy", "due_at"),
    [
        (CheckpointPolicy(every_steps=5, every_epochs=0), [5, 10, 15, 20, 25]),
        (CheckpointPolicy(every_steps=0, every_epochs=1), [7, 14, 21]),
        (CheckpointPolicy(every_steps=0, every_epochs=3), [21]),
        (CheckpointPolicy(every_steps=10, every_epochs=2), [10, 14, 20]),
        (CheckpointPolicy(every_epochs=0, every_seconds=1e-9), list(range(1, 28))),
        (CheckpointPolicy(every_epochs=0, every_seconds=1e9), []),
        (CheckpointPolicy(every_epochs=0), []),
    ],
    ids=str,
)
def test_a_checkpoint_falls_due(policy: CheckpointPolicy, due_at: list[int]) -> None:
    run = Laboratory().train(PLAIN, checkpoint=policy)
    taken = [(snapshot.trigger, snapshot.step) for snapshot in run.snapshots]
    assert taken == [*(("PERIODIC", step) for step in due_at), ("FINAL", 28)]
