"""Draining a trainer moves what it runs: with room kept, without a loss, ahead of the queue."""

from __future__ import annotations

from functools import partial

from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_COMPLETED,
)
from everstep.errors import Reason
from everstep.trainer.v1.trainer_pb2 import ResumeTrainingRequest
from tests.control_plane.conftest import Client, StartTrainer, assert_whole, changes
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining, until


def asked(training: ScriptedTraining) -> bool:
    return training.hand_over_requests > 0


async def some_rounds(trainer: ScriptedTrainer) -> None:
    """Some seconds, by a trainer's heartbeats: the dispatcher has a round a second."""
    heard = trainer.announced + 5
    await until(lambda: trainer.announced >= heard, "some rounds")


async def test_a_drained_trainer_hands_over_without_a_loss(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1", capacity=2)
    ids = [await client.create(restart_policy={"max_attempts": 1}) for _ in range(2)]
    trainings = [await first.begun(operation_id) for operation_id in ids]
    second = await start_trainer("trainer-2", capacity=2)
    drained = await client.drain("trainer-1")
    assert (drained.draining, len(drained.running)) == (True, 2)
    for operation_id, training in zip(ids, trainings, strict=True):
        await until(partial(asked, training), "the wish to hand over")
        assert not training.cancel_requests
        moving = {
            each.operation_id: each for each in (await client.trainers())["trainer-1"].running
        }
        assert moving[operation_id].moving_to == "trainer-2"
        training.hand_over(30)
        resumed = await second.begun(operation_id, 2)
        assert isinstance(resumed.request, ResumeTrainingRequest)
        assert resumed.request.checkpoint.checkpoint_id == f"ck-{operation_id}-1-30"
        resumed.complete()
        operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
        assert [attempt.end for attempt in operation.attempts] == ["HANDED_OVER", "COMPLETED"]
        assert operation.attempts[1].first_step == 31
        events = await client.watch(operation_id)
        assert_whole(events)
        assert changes(events)[1:4] == ["DISPATCHED", "HANDED_OVER", "DISPATCHED"]
        assert [event.note.reason for event in events if event.HasField("note")] == ["MOVING"]
    assert not (await client.trainers())["trainer-1"].running


async def test_a_training_stays_until_there_is_room_and_goes_ahead_of_the_queue(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1")
    moving = await client.create()
    training = await first.begun(moving)
    # Its bytes would be others: no place for what runs elsewhere already.
    await start_trainer("trainer-3", torch_version="2.14.0")
    await client.drain("trainer-1")
    await some_rounds(first)
    assert not asked(training)
    await client.drain("trainer-1", undo=True)

    second = await start_trainer("trainer-2", labels={"kind": "alike"})
    occupied = await second.begun(await client.create(trainer_labels={"kind": "alike"}))
    later = await client.create(priority=100, trainer_labels={"kind": "alike"})
    await client.drain("trainer-1")
    await some_rounds(first)
    assert not asked(training)

    occupied.complete()
    await until(partial(asked, training), "the wish to hand over")
    # Room is kept: the queue does not take it, however long the hand-over takes.
    await some_rounds(first)
    assert (later, 1) not in second.trainings
    training.hand_over(30)
    (await second.begun(moving, 2)).complete()
    (await second.begun(later)).complete()
    operation = await client.until_state(moving, OPERATION_STATE_COMPLETED)
    assert [attempt.end for attempt in operation.attempts] == ["HANDED_OVER", "COMPLETED"]


async def test_a_place_that_is_lost_is_found_anew(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1")
    operation_id = await client.create()
    training = await first.begun(operation_id)
    second = await start_trainer("trainer-2", capacity=8)
    third = await start_trainer("trainer-3")
    await client.drain("trainer-1")
    await until(partial(asked, training), "the wish to hand over")
    # It had most room, and kept some.
    await second.stop()
    # The dead one is given up when its lease has ended.
    await client.watch(operation_id, lambda event: "trainer trainer-3" in event.note.message)
    training.hand_over(30)
    (await third.begun(operation_id, 2)).complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)


async def test_what_is_asked_of_it_meanwhile_counts(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1")
    cancelled = await client.create()
    training = await first.begun(cancelled)
    second = await start_trainer("trainer-2")
    await client.drain("trainer-1")
    await until(partial(asked, training), "the wish to hand over")
    await client.cancel(cancelled)
    await until(lambda: training.cancel_requests, "the wish to stop")
    # It was about to be handed over when it heard.
    training.hand_over(30)
    operation = await client.until_state(cancelled, OPERATION_STATE_CANCELLED)
    assert operation.resumable
    # No room is kept for it any more.
    (await second.begun(await client.create())).complete()
    await client.drain("trainer-2")
    waiting = await client.create()
    assert "undo its draining" in (await client.get(waiting)).waiting_for
    undone = await client.drain("trainer-1", undo=True)
    assert not undone.draining
    (await first.begun(waiting)).fail(Reason.NON_FINITE_LOSS)
