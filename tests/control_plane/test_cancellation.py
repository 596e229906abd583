"""A cancellation reaches the trainer, whatever becomes of either side."""

from __future__ import annotations

from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_CANCELLING,
    OPERATION_STATE_RUNNING,
)
from tests.control_plane.conftest import Client, changes
from tests.control_plane.scripted_trainer import ScriptedTrainer, until
from tests.services.processes import ServiceProcess


async def test_a_cancellation_reaches_the_trainer_and_waits_for_its_word(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    operation = await client.cancel(operation_id)
    assert operation.state == OPERATION_STATE_CANCELLING
    assert (await client.cancel(operation_id)).state == OPERATION_STATE_CANCELLING
    await until(lambda: training.cancel_requests, "the trainer to hear it")
    assert not training.cancel_requests[0].discard
    assert (await client.get(operation_id)).state == OPERATION_STATE_CANCELLING
    training.commit(training.checkpoint(5))
    training.say(cancelled={"checkpoint": training.checkpoint(5)})
    operation = await client.until_state(operation_id, OPERATION_STATE_CANCELLED)
    assert operation.resumable
    assert operation.attempts[0].end == "CANCELLED"
    assert changes(await client.watch(operation_id)) == [
        "CREATED",
        "DISPATCHED",
        "CANCEL_REQUESTED",
        "CANCELLED",
    ]


async def test_a_cancellation_may_be_made_sharper(client: Client, trainer: ScriptedTrainer) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    await client.cancel(operation_id)
    await until(lambda: training.cancel_requests, "the trainer to hear it")
    await client.cancel(operation_id, discard=True)
    await until(lambda: training.cancel_requests[-1].discard, "the trainer to hear that, too")
    training.say(cancelled={})
    await client.until_state(operation_id, OPERATION_STATE_CANCELLED)


async def test_a_trainer_lost_while_cancelling_ends_in_cancelled(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    await trainer.begun(operation_id)
    await client.cancel(operation_id)
    await trainer.stop()
    operation = await client.until_state(operation_id, OPERATION_STATE_CANCELLED)
    assert len(operation.attempts) == 1


async def test_a_training_that_was_cancelled_before_it_began_is_never_begun(
    client: Client, trainer: ScriptedTrainer
) -> None:
    await trainer.stop_serving()
    operation_id = await client.create()
    await client.until_state(operation_id, OPERATION_STATE_RUNNING)
    await client.cancel(operation_id)
    await trainer.start()
    await client.until_state(operation_id, OPERATION_STATE_CANCELLED)
    assert not trainer.begin_requests


async def test_a_cancellation_survives_a_restart_of_the_control_plane(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    await client.cancel(operation_id)
    control_plane.kill()
    training.cancel_requests.clear()
    control_plane.start()
    await until(lambda: training.cancel_requests, "the trainer to hear it")
    training.say(cancelled={})
    await client.until_state(operation_id, OPERATION_STATE_CANCELLED)
