"""Operations given out to trainers and followed to their end."""

from __future__ import annotations

from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
    OPERATION_STATE_PENDING,
    CheckpointOperationRequest,
)
from everstep.errors import EverstepError, FieldViolation, Reason
from everstep.trainer.v1.trainer_pb2 import StartTrainingRequest
from tests.control_plane.conftest import Client, StartTrainer, assert_whole, changes, refused
from tests.control_plane.scripted_trainer import ScriptedTrainer, until


async def test_a_training_runs_to_its_end_and_is_forgotten(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    assert isinstance(training.request, StartTrainingRequest)
    training.say(phase_changed={"phase": "PHASE_TRAINING", "process_id": 4711})
    training.epoch(0, val_loss=0.5)
    training.commit(training.checkpoint(10))
    training.complete(training.checkpoint(10))
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert operation.result.epochs == 3
    assert operation.position.fraction == 1.0
    assert operation.metrics["val_loss"] == 0.5
    assert operation.latest_checkpoint.step == 10
    assert not operation.resumable
    [attempt] = operation.attempts
    assert (attempt.end, attempt.process_id, attempt.trainer_id) == (
        "COMPLETED",
        4711,
        "trainer-1",
    )
    await until(lambda: (operation_id, 1) in trainer.forgotten, "the attempt to be forgotten")
    events = await client.watch(operation_id)
    assert_whole(events)
    assert changes(events) == ["CREATED", "DISPATCHED", "COMPLETED"]


async def test_a_full_trainer_is_asked_again_when_it_has_room(
    client: Client, trainer: ScriptedTrainer
) -> None:
    trainer.refusal = EverstepError(Reason.NO_CAPACITY, "full")
    trainer.occupied = 1
    operation_id = await client.create()
    await client.watch(operation_id, lambda event: event.state_changed.reason == "REFUSED")
    operation = await client.get(operation_id)
    assert operation.state == OPERATION_STATE_PENDING
    assert "trainer-1" in operation.waiting_for
    trainer.refusal = None
    trainer.occupied = 0
    begun = len(trainer.begin_requests)
    assert begun == 1
    training = await trainer.begun(operation_id, 2)
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert [attempt.end for attempt in operation.attempts] == ["REFUSED", "COMPLETED"]


async def test_operations_wait_for_capacity_and_run_in_the_order_of_their_creation(
    client: Client, trainer: ScriptedTrainer
) -> None:
    ids = [await client.create() for _ in range(3)]
    for operation_id in ids:
        training = await trainer.begun(operation_id)
        assert [key for key, t in trainer.trainings.items() if not t.finished] == [
            (operation_id, 1)
        ]
        training.complete()
    await client.until_state(ids[-1], OPERATION_STATE_COMPLETED)


async def test_a_refused_strategy_fails_the_operation_with_its_fields(
    client: Client, trainer: ScriptedTrainer
) -> None:
    trainer.refusal = EverstepError(
        Reason.INVALID_STRATEGY,
        "the strategy is refused",
        violations=[FieldViolation("model.factory", "there is no model mlp")],
    )
    operation_id = await client.create()
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert operation.error.reason == Reason.INVALID_STRATEGY
    assert operation.error.violations[0].field == "model.factory"
    assert operation.attempts[0].end == "REFUSED"
    assert not operation.resumable


async def test_a_training_that_fails_by_itself_is_not_run_again(
    client: Client, trainer: ScriptedTrainer
) -> None:
    trainer.script = lambda training: training.fail(Reason.NON_FINITE_LOSS, "loss is nan")
    operation_id = await client.create()
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert (operation.error.reason, operation.error.message) == ("NON_FINITE_LOSS", "loss is nan")
    assert [attempt.end for attempt in operation.attempts] == ["FAILED"]


async def test_a_checkpoint_is_asked_of_the_trainer(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    await client.operations.CheckpointOperation(
        CheckpointOperationRequest(operation_id=operation_id)
    )
    assert training.checkpoint_requests == 1
    training.complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    error = await refused(
        client.operations.CheckpointOperation(CheckpointOperationRequest(operation_id=operation_id))
    )
    assert error.reason is Reason.NOT_RUNNING


async def test_work_goes_on_where_the_environment_is_the_same(
    client: Client, start_trainer: StartTrainer
) -> None:
    first = await start_trainer("trainer-1")
    operation_id = await client.create()
    training = await first.begun(operation_id)
    other = await start_trainer("trainer-2", capacity=8)
    other.torch_version = "2.14.0"
    await other.announce()
    training.fail(Reason.TRAINER_RESTARTED, restartable=True)
    again = await first.begun(operation_id, 2)
    again.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert {attempt.trainer_id for attempt in operation.attempts} == {"trainer-1"}
    assert not other.begin_requests
