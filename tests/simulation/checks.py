"""The promises, as `make chaos` holds them against a cluster, and what only a simulation sees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from control_plane import garbage
from everstep.sdk import (
    CheckpointCommitted,
    EpochCompleted,
    OperationState,
    StateChanged,
    StepMetrics,
    TrainingEvent,
)
from tests.chaos import checks
from tests.chaos.checks import Ending, Outcome
from tests.simulation.chain import losses
from tests.simulation.cluster import Cluster

__all__ = ["PROMISES", "Ending", "Outcome"]

Check = Callable[[Ending, Cluster], Iterator[str]]


def exact(ending: Ending, _cluster: Cluster) -> Iterator[str]:
    """Also: every step that was ever told had the loss that it has when nothing happens."""
    yield from checks.exact(ending)
    for outcome in ending.outcomes:
        operation = outcome.operation
        if operation.state is OperationState.COMPLETED and operation.result is None:
            yield f"{operation.id} is completed, and has no result"
        wanted = losses(int(operation.strategy.content["seed"]))
        for event in outcome.replay:
            match event:
                case StepMetrics(loss):
                    told = loss
                case EpochCompleted(_, metrics):
                    told = metrics["val_loss"]
                case _:
                    continue
            if told != wanted[event.position.step]:
                yield f"{operation.id}: step {event.position.step} came out otherwise"


def no_event_lost(ending: Ending, cluster: Cluster) -> Iterator[str]:
    """Also: each attempt's events are there from its first one on, without a gap."""
    yield from checks.no_event_lost(ending)
    for operation_id, indexes in cluster.disk.attempt_indexes().items():
        if indexes != list(range(1, len(indexes) + 1)):
            yield f"attempt {operation_id}: its events are {indexes}"


def no_half_checkpoint(ending: Ending, _cluster: Cluster) -> Iterator[str]:
    """Also: each attempt begins with the newest checkpoint that there is when it does."""
    yield from checks.no_half_checkpoint(ending)
    for outcome in ending.outcomes:
        first_steps = {attempt.number: attempt.first_step for attempt in outcome.operation.attempts}
        committed = 0
        for event in outcome.replay:
            if isinstance(event, CheckpointCommitted):
                committed = event.checkpoint.step
            elif isinstance(event, StateChanged) and event.reason == "DISPATCHED":
                first = first_steps.get(event.attempt)
                if first != committed + 1:
                    yield (
                        f"{outcome.operation.id}: attempt {event.attempt} begins at step {first}, "
                        f"and there is a checkpoint of step {committed}"
                    )


def one_runner(ending: Ending, cluster: Cluster) -> Iterator[str]:
    """Also: attempts are counted, and no trainer is given more of them than it takes."""
    yield from checks.one_runner(ending)
    for outcome in ending.outcomes:
        yield from _attempts_in_order(outcome)
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


def _attempts_in_order(outcome: Outcome) -> Iterator[str]:
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


def nothing_stuck(ending: Ending, cluster: Cluster) -> Iterator[str]:
    """Also: there is no operation that nobody asked for."""
    yield from checks.nothing_stuck(ending)
    asked_for = {outcome.operation.id for outcome in ending.outcomes}
    for operation_id in cluster.disk.heads():
        if operation_id not in asked_for:
            yield f"nobody asked for {operation_id}"


def nothing_lost_to_collection(ending: Ending, cluster: Cluster) -> Iterator[str]:
    """Also: an hour later nothing is left of an operation that was deleted."""
    yield from checks.nothing_lost_to_collection(ending)
    if any(_of_deleted(ending, cluster)):
        hour = garbage.DEFAULT_GRACE.total_seconds()
        cluster.loop.run_until_complete(asyncio.sleep(hour))
        ending.client.collect_garbage(grace=timedelta(0))
        yield from _of_deleted(ending, cluster)


def _of_deleted(ending: Ending, cluster: Cluster) -> Iterator[str]:
    known = cluster.disk.heads()
    for info in ending.store.list("operations/"):
        if info.key.split("/")[1] not in known:
            yield f"{info.key} is of an operation that was deleted"


def _as_in_chaos(check: checks.Check) -> Check:
    return lambda ending, _cluster: check(ending)


#: In the order of the README; collection comes after all that looks at what was there before.
PROMISES: Final[dict[str, Check]] = {
    "exact": exact,
    "no event lost": no_event_lost,
    "no half checkpoint": no_half_checkpoint,
    "one runner": one_runner,
    "nothing stuck": nothing_stuck,
    "nothing lost to clean-up": nothing_lost_to_collection,
    "nothing unpickled": _as_in_chaos(checks.nothing_unpickled),
}
