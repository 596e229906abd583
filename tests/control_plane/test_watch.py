"""Watching: every durable event once and in order, from wherever one begins."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import pytest

from control_plane.database.session import Database
from control_plane.event_log import POLL_SECONDS, EventLog
from control_plane.operations import Operations
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    CreateOperationRequest,
    OperationEvent,
    WatchOperationRequest,
    WatchOperationResponse,
)
from everstep.errors import EverstepError, Reason
from tests.control_plane.conftest import Client, refused, strategy
from tests.control_plane.scripted_trainer import PATIENCE_SECONDS, ScriptedTrainer, until
from tests.services.processes import ServiceProcess

EVENTS = 1500


def has_come_to(sequence: int, event: OperationEvent) -> bool:
    return event.sequence >= sequence


def is_epoch(number: int, event: OperationEvent) -> bool:
    progress = event.progress
    return progress.HasField("epoch_completed") and progress.epoch_completed.epoch == number


async def test_watchers_from_anywhere_miss_nothing_while_events_are_appended(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    numbers = random.Random(5)

    async def follow(begin_at: int) -> list[int]:
        """Breaks off and watches again, over and over."""
        await client.watch(operation_id, lambda event: event.sequence >= begin_at)
        seen: list[int] = []
        cursor = begin_at
        while True:
            stop_after = cursor + numbers.randint(1, 400)
            part = await client.watch(operation_id, partial(has_come_to, stop_after), cursor)
            seen += [event.sequence for event in part if event.sequence]
            cursor = seen[-1] if seen else cursor
            if part and part[-1].state_changed.reason == "COMPLETED":
                return seen

    async def append() -> None:
        for number in range(EVENTS):
            training.epoch(number)
            if number % 7 == 0:
                training.show(number, 0.5)
                await asyncio.sleep(0)
        training.complete()

    begins = [1, 2, 40, 300, 900]
    results = await asyncio.gather(append(), *(follow(begin) for begin in begins))
    last = EVENTS + 1 + 3
    for begin, seen in zip(begins, results[1:], strict=True):
        assert seen == list(range(begin + 1, last + 1))


async def test_events_are_never_changed(client: Client, trainer: ScriptedTrainer) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    for number in range(50):
        training.epoch(number, val_loss=float("nan"), accuracy=0.5)
    training.complete()
    live = [e for e in await client.watch(operation_id) if e.sequence]
    again = await client.watch(operation_id)
    assert [e.SerializeToString(deterministic=True) for e in live] == [
        e.SerializeToString(deterministic=True) for e in again
    ]
    operation = await client.get(operation_id)
    assert operation.metrics["val_loss"] != operation.metrics["val_loss"]


async def test_step_metrics_are_shown_but_not_kept(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    training.show(step=42, loss=0.25)
    events = await client.watch(operation_id, lambda e: e.progress.HasField("step_metrics"))
    assert events[-1].sequence == 0
    assert events[-1].progress.step_metrics.loss == 0.25

    async def position() -> int:
        return (await client.get(operation_id)).position.step

    for _ in range(500):
        if await position() == 42:
            break
        await asyncio.sleep(0.01)
    operation = await client.get(operation_id)
    assert operation.position.step == 42
    assert operation.metrics["loss"] == 0.25
    training.complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    replay = await client.watch(operation_id)
    assert not [e for e in replay if e.progress.HasField("step_metrics")]


async def test_step_metrics_from_before_an_event_are_not_shown_after_it(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.show(step=5, loss=0.5)
    await client.watch(operation_id, lambda e: e.progress.HasField("step_metrics"))
    training.epoch(0)
    await client.watch(operation_id, partial(is_epoch, 0))

    def say_another_epoch(event: OperationEvent) -> bool:
        if is_epoch(0, event):
            training.epoch(1)
        return is_epoch(1, event)

    events = await client.watch(operation_id, say_another_epoch)
    assert not [e for e in events if e.progress.HasField("step_metrics")]


async def test_watchers_are_woken_not_left_to_look_again(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    rounds = 20
    began = time.monotonic()

    def answer(event: OperationEvent) -> bool:
        number = event.progress.epoch_completed.epoch
        if event.progress.HasField("epoch_completed") and number < rounds:
            training.epoch(number + 1)
        return is_epoch(rounds, event)

    training.epoch(0)
    await client.watch(operation_id, answer)
    assert time.monotonic() - began < rounds * POLL_SECONDS / 2


async def test_a_sequence_ahead_of_the_log_is_refused(client: Client) -> None:
    operation_id = await client.create()
    error = await refused(client.watch(operation_id, after_sequence=2))
    assert error.reason is Reason.FUTURE_SEQUENCE
    assert error.metadata["last_sequence"] == "1"


async def test_a_stopping_control_plane_ends_watches_with_draining(
    client: Client, control_plane: ServiceProcess
) -> None:
    operation_id = await client.create()
    call = client.operations.WatchOperation(
        WatchOperationRequest(operation_id=operation_id), timeout=PATIENCE_SECONDS
    )
    assert await anext(aiter(call))
    stopping = asyncio.create_task(asyncio.to_thread(control_plane.stop))

    async def rest() -> None:
        async for _ in call:
            pass

    error = await refused(rest())
    assert error.reason is Reason.DRAINING
    assert error.status == "UNAVAILABLE"
    assert await stopping == 0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.migrate()
    yield database
    database.close()


async def test_an_idle_watcher_is_told_how_far_the_log_is(database: Database) -> None:
    log = EventLog(database, idle_seconds=0.05)
    operations = Operations(database, log, lambda: None)
    operation = await operations.create(CreateOperationRequest(strategy=strategy()))
    marks = []
    async with aclosing(log.watch(operation.operation_id, 0)) as responses:
        async for response in responses:
            message = WatchOperationResponse.FromString(response)
            if message.HasField("through_sequence"):
                marks.append(message.through_sequence)
            if len(marks) == 3:
                break
    assert marks == [1, 1, 1]


async def test_a_log_that_another_process_writes_is_followed(database: Database) -> None:
    """Two control planes, one database: a wake-up is a hint, the log is the truth."""
    here, there = EventLog(database), EventLog(database)
    operations = Operations(database, there, lambda: None)
    operation_id = (
        await operations.create(CreateOperationRequest(strategy=strategy()))
    ).operation_id
    seen: list[OperationEvent] = []

    async def follow() -> None:
        async with aclosing(here.watch(operation_id, 0)) as responses:
            async for response in responses:
                seen.extend(WatchOperationResponse.FromString(response).batch.events)

    following = asyncio.create_task(follow())
    await until(lambda: seen, "the first event")
    await operations.cancel(operation_id, discard=False)
    await following
    assert [event.sequence for event in seen] == [1, 2]


async def test_a_draining_log_takes_no_watcher(database: Database) -> None:
    log = EventLog(database)
    log.drain()
    with pytest.raises(EverstepError) as caught:
        await anext(log.watch("op-1", 0))
    assert caught.value.reason is Reason.DRAINING


async def test_watchers_of_one_log_read_it_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that is new is read from the database for all of them together."""
    log = EventLog(database)
    operations = Operations(database, log, lambda: None)
    operation_id = (
        await operations.create(CreateOperationRequest(strategy=strategy()))
    ).operation_id
    seen: list[list[bytes]] = [[] for _ in range(50)]

    async def follow(mine: list[bytes]) -> None:
        async with aclosing(log.watch(operation_id, 0)) as responses:
            async for response in responses:
                mine.append(response)

    following = [asyncio.create_task(follow(mine)) for mine in seen]
    await until(lambda: all(seen), "the first event everywhere")
    reads = 0
    read = database.read

    async def counting(*args: object) -> object:
        nonlocal reads
        reads += 1
        return await read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "read", counting)
    await operations.cancel(operation_id, discard=False)
    await asyncio.gather(*following)
    assert reads <= 3
    assert len({tuple(mine) for mine in seen}) == 1


async def test_progress_of_a_phase_leaves_the_position_as_it_was(
    client: Client, trainer: ScriptedTrainer
) -> None:
    """An attempt that restores its state does not know yet where it is."""
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(2, val_loss=0.5)
    training.transient(phase_progress={"phase": "PHASE_RESTORING", "done_bytes": 5})
    training.transient(step_metrics={"loss": 0.25})
    both = await client.watch(operation_id, lambda e: e.progress.HasField("step_metrics"))
    shown = [event for event in both if event.progress.HasField("phase_progress")]
    assert shown[-1].progress.phase_progress.done_bytes == 5
    assert shown[-1].progress.position.fraction == 0.3
    operation = await client.get(operation_id)
    assert (operation.position.step, operation.position.fraction) == (30, 0.3)
    assert operation.position.total_steps == 100
    assert operation.metrics["val_loss"] == 0.5


async def test_no_more_is_shown_than_a_restart_would_remember(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess
) -> None:
    """Killed at any moment, the control plane never shows less than it has shown."""
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    shown = 0.0
    for step in range(1, 90):
        training.show(step, 0.5)
        events = await client.watch(operation_id, lambda e, n=step: e.progress.position.step == n)
        fractions = [e.progress.position.fraction for e in events if not e.sequence]
        assert fractions[-1] >= shown
        shown = fractions[-1]
        if step % 30 == 29:
            control_plane.kill()
            control_plane.start()
            assert (await client.get(operation_id)).position.fraction >= shown
    assert shown > 0.85


async def test_work_at_risk_is_kept_while_an_attempt_runs(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    assert not (await client.get(operation_id)).HasField("at_risk")
    at_risk = {"steps_since_checkpoint": 7, "seconds_since_checkpoint": 2.5}
    training.say(step=7, at_risk=at_risk, warning={"reason": "TEST"})
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    assert (await client.get(operation_id)).at_risk.steps_since_checkpoint == 7
    training.transient(step=9, at_risk={"steps_since_checkpoint": 9}, step_metrics={"loss": 1.0})
    await client.watch(operation_id, lambda event: event.progress.position.step == 9)
    assert (await client.get(operation_id)).at_risk.steps_since_checkpoint == 9
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    again = await trainer.begun(operation_id, 2)
    assert not (await client.get(operation_id)).HasField("at_risk")
    again.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert not operation.HasField("at_risk")


async def test_kept_samples_of_step_metrics_are_replayed_and_counted_in(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.say(step=5, step_metrics={"loss": 0.75, "learning_rate": 0.1, "gradient_norm": 2.0})
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert operation.metrics["loss"] == 0.75
    assert operation.metrics["gradient_norm"] == 2.0
    replay = await client.watch(operation_id)
    kept = [event for event in replay if event.progress.HasField("step_metrics")]
    assert [(e.progress.index, e.progress.step_metrics.loss) for e in kept] == [(1, 0.75)]
    assert kept[0].sequence > 0
