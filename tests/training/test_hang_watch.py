"""What counts as a hang: by what is done, and by how long it took before."""

from __future__ import annotations

import pytest

from trainer_service.child.heartbeat import Activity, Beat
from trainer_service.hang_watch import LONGEST_FACTOR, PATIENCE_FACTOR, HangWatch
from trainer_service.heartbeat_memory import MAX_STACKS, ordered_stacks

LIMIT = 10.0


def silence(watch: HangWatch, beat: Beat, at_most: float) -> float:
    """Seconds after which a process that stays at a beat hangs."""
    watch.look(beat, 1.0)
    waited = 0.0
    while waited < at_most:
        waited += 1.0
        if watch.look(beat, 1.0) is not None:
            return waited
    raise AssertionError(f"no hang in {at_most} s")


@pytest.mark.parametrize(
    ("activity", "first", "limit"),
    [
        (Activity.STEP, False, LIMIT),
        (Activity.EVALUATION, False, LIMIT),
        (Activity.SNAPSHOT, False, LIMIT),
        (Activity.STEP, True, PATIENCE_FACTOR * LIMIT),
        (Activity.EVALUATION, True, PATIENCE_FACTOR * LIMIT),
        (Activity.LOADING, False, PATIENCE_FACTOR * LIMIT),
        (Activity.PREPARING, True, PATIENCE_FACTOR * LIMIT),
    ],
)
def test_the_limit_of_what_is_done(activity: Activity, first: bool, limit: float) -> None:
    beat = Beat(1, 5, activity, first)
    assert silence(HangWatch(LIMIT), beat, 1000) == pytest.approx(limit + 1)


def test_steps_that_are_slow_by_nature_have_longer() -> None:
    watch = HangWatch(LIMIT)
    for number in range(1, 40):
        assert watch.look(Beat(number, number, Activity.STEP, number == 1), 1.0) is None
        for _ in range(8 if number > 1 else 100):
            assert watch.look(Beat(number, number, Activity.STEP, number == 1), 1.0) is None
    again = Beat(40, 40, Activity.STEP, False)
    assert silence(watch, again, 1000) == pytest.approx(LONGEST_FACTOR * 8 + 1)
    # Another kind of work has learned nothing of that, another process everything.
    evaluation = Beat(41, 40, Activity.EVALUATION, False)
    assert silence(watch, evaluation, 1000) == pytest.approx(LIMIT + 1)
    watch.begin()
    assert silence(watch, again, 1000) == pytest.approx(LONGEST_FACTOR * 8 + 1)


def test_the_thread_that_trains_comes_first_and_the_rest_is_cut() -> None:
    others = [f"Thread 0x{number} (most recent call first):\n  File" for number in range(1000)]
    current = "Current thread 0xff (most recent call first):\n  File model.py in forward"
    stacks = ordered_stacks("\n\n".join([*others, current]) + "\n")
    assert stacks.startswith(current)
    assert MAX_STACKS <= len(stacks) < MAX_STACKS + 10
