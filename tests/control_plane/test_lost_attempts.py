"""Broken streams, lost trainers, damaged checkpoints: what is taken up, and what begins again."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

from checkpoint_store.blobs import BlobStore
from everstep.control.v1 import checkpoints_pb2
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
    OPERATION_STATE_RUNNING,
    DeleteOperationRequest,
    OperationEvent,
)
from everstep.errors import Reason
from everstep.trainer.v1.trainer_pb2 import ResumeTrainingRequest, StartTrainingRequest
from tests.control_plane.conftest import LEASE_SECONDS, Client, StartTrainer, assert_whole, refused
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining, until
from tests.control_plane.stored_checkpoints import HOUR, age, collect, manifests, store_checkpoint
from tests.services.processes import ServiceProcess


def has_more(requests: list[Any], count: int) -> bool:
    return len(requests) > count


def has_index(index: int, event: OperationEvent) -> bool:
    return event.progress.index == index


async def test_a_broken_stream_is_taken_up_after_the_last_event(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    for number in range(1, 4):
        watches = len(trainer.watch_requests)
        trainer.break_streams()
        await until(partial(has_more, trainer.watch_requests, watches), "a watch")
        training.epoch(number)
        await client.watch(operation_id, partial(has_index, number + 1))
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1
    assert [request.after_index for request in trainer.watch_requests] == [1, 2, 3]
    assert_whole(await client.watch(operation_id))


async def test_a_lost_trainer_is_replaced_and_the_newest_checkpoint_taken(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1")
    operation_id = await client.create()
    training = await first.begun(operation_id)
    training.commit(training.checkpoint(10))
    training.commit(training.checkpoint(20))
    await client.watch(operation_id, lambda event: event.progress.index == 2)
    second = await start_trainer("trainer-2")
    await first.stop()
    resumed = await second.begun(operation_id, 2)
    assert isinstance(resumed.request, ResumeTrainingRequest)
    assert resumed.request.checkpoint.checkpoint_id == f"ck-{operation_id}-1-20"
    resumed.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert [attempt.end for attempt in operation.attempts] == ["LOST", "COMPLETED"]
    assert operation.attempts[1].first_step == 21
    assert operation.position.fraction == 1.0

    # It comes back and still trains: nobody wants that any more.
    await first.start()
    await until(lambda: training.cancel_requests, "the lost attempt to be stopped")
    assert training.cancel_requests[0].discard
    training.say(cancelled={})
    await until(lambda: (operation_id, 1) in first.forgotten, "the attempt to be forgotten")
    assert_whole(await client.watch(operation_id))


async def test_a_lost_trainer_of_a_deleted_operation_is_stopped_and_cleaned_up_after(
    client: Client, start_trainer: StartTrainer, store: BlobStore, folder: Path
) -> None:
    first = await start_trainer("trainer-1")
    operation_id = await client.create()
    training = await first.begun(operation_id)
    second = await start_trainer("trainer-2")
    await first.stop()
    (await second.begun(operation_id, 2)).complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    await client.operations.DeleteOperation(DeleteOperationRequest(operation_id=operation_id))
    await collect(client)
    store_checkpoint(store, training, 10)

    # It comes back and still trains: nobody wants that any more.
    await first.start()
    await until(lambda: training.cancel_requests, "the attempt to be stopped")
    assert training.cancel_requests[0].discard
    training.say(cancelled={})
    await until(lambda: (operation_id, 1) in first.forgotten, "the attempt to be forgotten")
    age(folder, 2 * HOUR)
    for _ in range(1000):
        if (await collect(client)).removed_blobs:
            break
        await asyncio.sleep(0.01)
    assert not manifests(store)
    assert not list(store.list("blobs/"))


async def test_a_trainer_that_does_not_know_the_attempt_has_lost_it(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    del trainer.trainings[operation_id, 1]
    trainer.break_streams()
    again = await trainer.begun(operation_id, 2)
    # No checkpoint was ever committed: from the beginning.
    assert isinstance(again.request, StartTrainingRequest)
    again.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert [attempt.end_reason for attempt in operation.attempts] == ["TRAINING_NOT_FOUND", ""]


async def test_a_frozen_trainer_whose_stream_stays_open_is_lost(
    client: Client, start_trainer: StartTrainer
) -> None:
    frozen = await start_trainer("trainer-1")
    operation_id = await client.create()
    await frozen.begun(operation_id)
    await frozen.fall_silent()
    other = await start_trainer("trainer-2")
    (await other.begun(operation_id, 2)).complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert operation.attempts[0].end == "LOST"


async def test_a_trainer_that_announces_a_wrong_address_holds_no_operation_forever(
    client: Client, trainer: ScriptedTrainer
) -> None:
    await trainer.stop_serving()
    operation_id = await client.create(restart_policy={"max_attempts": 1})
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert operation.attempts[0].end == "LOST"
    assert "EVERSTEP_ADVERTISE" in operation.error.message
    assert trainer.address in operation.error.message


async def test_a_trainer_that_leaves_out_an_event_is_given_up(
    client: Client, trainer: ScriptedTrainer
) -> None:
    def leave_out(training: ScriptedTraining) -> None:
        training.epoch(0)
        training.epoch(1)
        training.durable[1].index = 3

    trainer.script = leave_out
    operation_id = await client.create(restart_policy={"max_attempts": 1})
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert operation.attempts[0].end == "LOST"
    assert "left out event 2" in operation.error.message
    assert_whole(await client.watch(operation_id))


async def test_attempts_lost_in_a_row_are_counted_until_one_gets_further(
    client: Client, trainer: ScriptedTrainer
) -> None:
    restarted = {"reason": Reason.TRAINER_RESTARTED, "message": "restarted", "restartable": True}
    away = {"reason": Reason.STORE_UNAVAILABLE, "message": "no answer", "restartable": True}

    def lose(training: ScriptedTraining) -> None:
        if training.attempt == 2:
            training.commit(training.checkpoint(10))
        training.say(failed={"error": away if training.attempt == 2 else restarted})

    trainer.script = lose
    operation_id = await client.create(restart_policy={"max_attempts": 3, "backoff_seconds": 0.01})
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    # One loss, then a step forward, then three in a row (the one after the step is the first).
    assert [attempt.end for attempt in operation.attempts] == ["LOST"] * 4
    assert operation.error.reason == Reason.ATTEMPTS_EXHAUSTED
    # Why the row began is kept beside why it ended.
    assert "the first one (attempt 2) with STORE_UNAVAILABLE" in operation.error.message
    assert "the last one because: restarted" in operation.error.message
    assert "3 attempts in a row" in operation.error.message
    assert "restarted" in operation.error.message
    assert operation.resumable


async def test_a_stopping_trainer_hands_over_without_a_loss(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1")
    operation_id = await client.create(restart_policy={"max_attempts": 1})
    training = await first.begun(operation_id)
    await first.announce(draining=True)
    second = await start_trainer("trainer-2")
    await first.stop()
    await first.start()
    await first.announce(draining=True)
    training.commit(training.checkpoint(30))
    training.fail(Reason.DRAINING, restartable=True)
    resumed = await second.begun(operation_id, 2)
    assert resumed.request.checkpoint.checkpoint_id == f"ck-{operation_id}-1-30"
    resumed.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert [attempt.end for attempt in operation.attempts] == ["HANDED_OVER", "COMPLETED"]


async def test_an_unreadable_checkpoint_gives_way_to_an_older_one_with_a_note(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.commit(training.checkpoint(10))
    training.commit(training.checkpoint(20))

    def corrupt(again: ScriptedTraining) -> None:
        if again.request.checkpoint.checkpoint_id.endswith("-20"):
            again.fail(Reason.CHECKPOINT_CORRUPT, "blob abc is damaged", restartable=True)
        else:
            again.complete()

    trainer.script = corrupt
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert [attempt.end for attempt in operation.attempts] == ["LOST", "FAILED", "COMPLETED"]
    events = await client.watch(operation_id)
    [note] = [event.note for event in events if event.HasField("note")]
    assert note.reason == "CHECKPOINT_SKIPPED"
    assert f"ck-{operation_id}-1-20" in note.message
    assert f"ck-{operation_id}-1-10" in note.message
    assert trainer.trainings[operation_id, 3].request.checkpoint.checkpoint_id.endswith("-1-10")


async def test_when_no_checkpoint_can_be_read_it_never_begins_anew(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.commit(training.checkpoint(10))
    trainer.script = lambda again: again.fail(
        Reason.CHECKPOINT_CORRUPT, "blob abc is damaged", restartable=True
    )
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert operation.error.reason == Reason.CHECKPOINT_CORRUPT
    assert len(operation.attempts) == 2
    error = await refused(client.resume(operation_id))
    assert error.reason is Reason.CHECKPOINT_CORRUPT


async def find_damaged(client: Client, checkpoint_id: str) -> None:
    """One that is registered and in no store, and all like it."""
    request = checkpoints_pb2.VerifyCheckpointRequest(checkpoint_id=checkpoint_id)
    error = await refused(client.checkpoints.VerifyCheckpoint(request, timeout=10))
    assert error.reason is Reason.CHECKPOINT_CORRUPT


async def test_a_checkpoint_that_a_verification_found_damaged_is_passed_over_in_the_log(
    client: Client, trainer: ScriptedTrainer, store: BlobStore
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    older, newer = store_checkpoint(store, training, 10), training.checkpoint(20)
    training.commit(older)
    training.commit(newer)
    await client.watch(operation_id, lambda event: event.progress.index == 2)
    await find_damaged(client, newer.reference.checkpoint_id)
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    again = await trainer.begun(operation_id, 2)
    assert again.request.checkpoint == older.reference
    events = await client.watch(operation_id, lambda event: event.state_changed.attempt == 2)
    said = f"{older.reference.checkpoint_id}; {newer.reference.checkpoint_id} is damaged"
    assert said in events[-1].state_changed.message


async def test_with_every_checkpoint_found_damaged_it_tries_the_newest_and_never_begins_anew(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.commit(training.checkpoint(10))
    training.commit(training.checkpoint(20))
    await client.watch(operation_id, lambda event: event.progress.index == 2)
    older, newer = (f"ck-{operation_id}-1-{step}" for step in (10, 20))
    await find_damaged(client, newer)
    delete = checkpoints_pb2.DeleteCheckpointRequest
    await client.checkpoints.DeleteCheckpoint(delete(checkpoint_id=older), timeout=10)
    error = await refused(
        client.checkpoints.DeleteCheckpoint(delete(checkpoint_id=newer), timeout=10)
    )
    assert error.reason is Reason.CHECKPOINT_IN_USE
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    again = await trainer.begun(operation_id, 2)
    assert isinstance(again.request, ResumeTrainingRequest)
    assert again.request.checkpoint.checkpoint_id == newer
    again.fail(Reason.CHECKPOINT_CORRUPT, "blob abc is damaged", restartable=True)
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert operation.error.reason == Reason.CHECKPOINT_CORRUPT
    assert len(operation.attempts) == 2


async def test_the_fraction_never_goes_back_over_a_resume(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.commit(training.checkpoint(20))
    training.epoch(6)
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    again = await trainer.begun(operation_id, 2)
    again.epoch(2)
    events = await client.watch(
        operation_id, lambda event: event.progress.attempt == 2 and event.progress.index == 1
    )
    fractions = [
        event.progress.position.fraction
        for event in events
        if event.HasField("progress") and event.sequence
    ]
    assert fractions == sorted(fractions)
    operation = await client.get(operation_id)
    assert operation.state == OPERATION_STATE_RUNNING
    assert operation.position.fraction == 0.7
    assert operation.position.step == 30


async def test_a_control_plane_killed_in_mid_stream_loses_and_repeats_nothing(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    for number in range(300):
        training.epoch(number)
    await client.watch(operation_id, lambda event: event.progress.index >= 20)
    control_plane.kill()
    for number in range(300, 600):
        training.epoch(number)
    control_plane.start()
    await client.watch(operation_id, lambda event: event.progress.index >= 600)
    control_plane.kill()
    training.complete()
    control_plane.start()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1
    events = await client.watch(operation_id)
    assert_whole(events)
    assert sum(event.HasField("progress") for event in events) == 601
    assert len(trainer.begin_requests) == 1
    await until(lambda: (operation_id, 1) in trainer.forgotten, "the attempt to be forgotten")


async def test_a_control_plane_away_longer_than_the_lease_keeps_the_attempt(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    control_plane.kill()
    await trainer.stop()
    lease_end = time.monotonic() + 2 * LEASE_SECONDS
    await until(lambda: time.monotonic() > lease_end, "the lease to end meanwhile")
    control_plane.start()
    # Its lease has ended by the clock, but nobody was there to hear it.
    tried_by = time.monotonic() + LEASE_SECONDS / 4
    await until(lambda: time.monotonic() > tried_by, "the trainer to be missed")
    await trainer.start()
    training.epoch(1)
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1
