"""Schedules hold the promises, and are the same each time; the loop keeps its own."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys

import pytest

from tests.simulation.loop import PROCESS, SimulatedLoop, Stalled
from tests.simulation.running import run_all

#: From the first seed on; `make simulate` goes on with others.
SCHEDULES = 60
PROCESSES = 2


def test_schedules_hold_every_promise() -> None:
    """A seed that is printed here is done again by `make simulate SIMULATE_SEED=N`."""
    reports = list(run_all(range(SCHEDULES), PROCESSES))
    assert len(reports) == SCHEDULES
    broken = [f"seed {report.plan.seed}: {report.broken}" for report in reports if report.broken]
    assert not broken, "\n".join(broken)
    # What nothing happens to holds promises, too.
    lost = sum("LOST" in line for report in reports for line in report.story)
    assert lost > SCHEDULES / 10, f"{lost} attempts were lost"


def test_a_seed_is_the_same_story_in_another_process() -> None:
    told = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "229"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        told.append(ran.stdout)
    assert told[0] == told[1]
    # And the same after others in one process.
    (_, after_another) = run_all([230, 229], 1)
    assert f"trace {after_another.trace}\n" in told[0]


def test_another_seed_is_another_story() -> None:
    traces = {report.trace for report in run_all([1, 2, 3, 1], 1)}
    assert len(traces) == 3


@pytest.fixture
def loop() -> SimulatedLoop:
    return SimulatedLoop(random.Random(0))


def test_an_hour_passes_at_once(loop: SimulatedLoop) -> None:
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.time() == 3600
    loop.close()


def test_who_waits_for_nothing_is_told(loop: SimulatedLoop) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    task = loop.create_task(wait())
    with pytest.raises(Stalled):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


def test_a_thread_lets_others_run_and_dies_with_its_process(loop: SimulatedLoop) -> None:
    done: list[str] = []

    def slowly() -> None:
        done.append(f"begun {loop.time():.0f}")
        loop.block(10)
        done.append(f"ended {loop.time():.0f}")

    async def main() -> None:
        await asyncio.to_thread(slowly)
        assert PROCESS.get() is not None

    lives, dies = loop.start("lives", main), loop.start("dies", main)
    loop.run_until_complete(asyncio.sleep(5))
    loop.kill(dies)
    loop.run_until_complete(asyncio.sleep(10))
    assert done == ["begun 0", "begun 0", "ended 10"]
    assert not lives.tasks
    assert not dies.tasks
    loop.close()


def test_a_suspended_process_wakes_late(loop: SimulatedLoop) -> None:
    woke: list[float] = []

    async def main() -> None:
        await asyncio.sleep(1)
        woke.append(loop.time())

    process = loop.start("sleeps", main)
    loop.run_until_complete(asyncio.sleep(0.5))
    loop.suspend(process)
    loop.run_until_complete(asyncio.sleep(59.5))
    assert not woke
    loop.resume(process)
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0.1))
    assert woke == [60.0]
    loop.close()
