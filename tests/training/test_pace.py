"""The time that is left: by how fast it was lately, with what is still to come counted in."""

from __future__ import annotations

import pytest

from trainer_service.child.pace import Pace


def stepped(pace: Pace, count: int, seconds: float) -> None:
    for _ in range(count):
        pace.stepped(seconds)


def test_it_is_unknown_until_there_were_steps_enough() -> None:
    pace = Pace()
    assert pace.seconds_left(100, 1) is None
    pace.stepped(60.0)
    assert pace.seconds_left(100, 1) is None
    stepped(pace, 3, 0.25)
    assert pace.seconds_left(100, 1) is None
    stepped(pace, 1, 0.25)
    assert pace.seconds_left(100, 0) == pytest.approx(25)


def test_nothing_left_takes_no_time() -> None:
    assert Pace().seconds_left(0, 0) == 0


def test_the_first_step_is_not_like_the_others() -> None:
    pace = Pace()
    pace.stepped(30.0)
    stepped(pace, 100, 0.1)
    assert pace.seconds_left(1000, 0) == pytest.approx(100)


@pytest.mark.parametrize(
    ("before", "after"), [(0.1, 0.5), (0.5, 0.1), (0.01, 1.0), (1.0, 0.01), (0.1, 40.0)]
)
def test_it_follows_a_change_of_speed(before: float, after: float) -> None:
    pace = Pace()
    stepped(pace, round(120 / before), before)
    assert pace.seconds_left(1000, 0) == pytest.approx(1000 * before)
    stepped(pace, max(5, round(35 / after)), after)
    assert pace.seconds_left(1000, 0) == pytest.approx(1000 * after, rel=0.1)


def test_a_step_that_is_often_slow_counts_as_often_as_it_comes() -> None:
    pace = Pace()
    for _ in range(100):
        stepped(pace, 99, 0.01)
        pace.stepped(1.01)
    assert pace.seconds_left(1000, 0) == pytest.approx(20, rel=0.1)


def test_a_machine_that_slept_is_not_slow() -> None:
    pace = Pace()
    for _ in range(3):
        stepped(pace, 300, 0.1)
        pace.stepped(8 * 60 * 60.0)
        assert pace.seconds_left(1000, 0) == pytest.approx(100)


def test_evaluations_and_snapshots_are_counted_in() -> None:
    pace = Pace()
    pace.stepped(1.0)
    for _ in range(100):
        pace.stepped(0.1)
        pace.snapshot_taken(0.01)
    assert pace.seconds_left(100, 0) == pytest.approx(11, rel=0.01)
    pace.evaluated(5.0)
    assert pace.seconds_left(100, 3) == pytest.approx(26, rel=0.01)
    pace.evaluated(2.0)
    assert pace.seconds_left(100, 3) == pytest.approx(17, rel=0.01)
