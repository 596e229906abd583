"""The promises, as `make chaos` holds them against a cluster, and what only a simulation can see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Final

from everstep.sdk import StateChanged, TrainingEvent
from tests.chaos import checks
from tests.chaos.checks import Ending, Outcome
from tests.simulation.cluster import Cluster

__all__ = ["PROMISES", "Ending", "Outcome"]

Check = Callable[[Ending, Cluster], Iterator[str]]


def _as_in_chaos(check: checks.Check) -> Check:
    return lambda ending, _cluster: check(ending)


def one_runner(ending: Ending, cluster: Cluster) -> Iterator[str]:
    """Also: no trainer is given more than it takes; each attempt's words come in its order."""
    yield from checks.one_runner(ending)
    for outcome in ending.outcomes:
        yield from _steps_of_attempts(outcome)
    for trainer, capacity in cluster.capacities.items():
        changes: list[tuple[datetime, int]] = []
        for outcome in ending.outcomes:
            for attempt in outcome.operation.attempts:
                if attempt.trainer_id == trainer and attempt.started and attempt.ended:
                    changes += [(attempt.started, 1), (attempt.ended, -1)]
        load = 0
        for _, change in sorted(changes):
            load += change
            if load > capacity:
                yield f"{trainer} was given {load} attempts, and takes {capacity}"


def _steps_of_attempts(outcome: Outcome) -> Iterator[str]:
    """An attempt begins where the one before it left a checkpoint, and dispatches are counted."""
    numbers = [
        event.attempt
        for event in outcome.replay
        if isinstance(event, StateChanged) and event.reason == "DISPATCHED"
    ]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"{outcome.operation.id}: attempts were dispatched as {numbers}"
    speaking = [event.attempt for event in outcome.replay if isinstance(event, TrainingEvent)]
    if any(later < earlier for earlier, later in pairwise(speaking)):
        yield f"{outcome.operation.id}: an attempt speaks after a later one"


def exact(ending: Ending, _cluster: Cluster) -> Iterator[str]:
    """Also: whoever completed says what came out."""
    yield from checks.exact(ending)
    for outcome in ending.outcomes:
        if str(outcome.operation.state) == "COMPLETED" and outcome.operation.result is None:
            yield f"{outcome.operation.id} is completed, and has no result"


#: In the order of the README.
PROMISES: Final[dict[str, Check]] = {
    "exact": exact,
    "no event lost": _as_in_chaos(checks.no_event_lost),
    "no half checkpoint": _as_in_chaos(checks.no_half_checkpoint),
    "one runner": one_runner,
    "nothing stuck": _as_in_chaos(checks.nothing_stuck),
    "nothing lost to clean-up": _as_in_chaos(checks.nothing_lost_to_collection),
    "nothing unpickled": _as_in_chaos(checks.nothing_unpickled),
}
