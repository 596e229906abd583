"""What schedules have found, as plans by hand: each was broken once."""

from __future__ import annotations

import pytest

from tests.simulation.faults import DiscardedAndResumed, StoreAway
from tests.simulation.plan import Plan, Step, Training
from tests.simulation.schedule import Report, Schedule


def run(*steps: Step, every_steps: int, epochs: int = 2) -> Report:
    """One training on one trainer, with these faults."""
    training = Training(seed=1, epochs=epochs, every_steps=every_steps, keep_last=3, at=0.0)
    return Schedule(Plan(1, 1, 1, (training,), steps)).run()


@pytest.mark.parametrize("every_steps", [3, 50])
def test_a_training_discarded_while_its_end_is_stored_is_cancelled(every_steps: int) -> None:
    """Neither completed with the digests of an earlier checkpoint, nor failed."""
    report = run(
        Step(2.5, StoreAway("store", 6.0)),
        Step(7.0, DiscardedAndResumed("operation 0", 0.2)),
        every_steps=every_steps,
    )
    assert not report.broken, "\n".join(report.story)
    told = "\n".join(report.story)
    assert "CANCELLED" in told
    assert "FAILED" not in told


def test_a_training_discarded_between_two_tries_of_an_upload_ends() -> None:
    """The end of training and the end of the upload come at once, and neither is missed."""
    report = run(
        Step(1.5, StoreAway("store", 3.0)),
        Step(2.4, DiscardedAndResumed("operation 0", 0.2)),
        every_steps=3,
        epochs=8,
    )
    assert not report.broken, "\n".join(report.story)
    assert "CANCELLED" in "\n".join(report.story)
