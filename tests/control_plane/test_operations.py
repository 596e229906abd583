"""Operations as callers see them: durable, idempotent, and refused in the right words."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import pytest

from everstep.control.v1 import operations_pb2
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
    OPERATION_STATE_PENDING,
    OPERATION_STATE_RUNNING,
    DeleteOperationRequest,
    ListOperationsRequest,
)
from everstep.errors import Reason
from everstep.trainer.v1.trainer_pb2 import ResumeTrainingRequest
from everstep.training.v1.strategy_pb2 import StrategyOverrides
from tests.control_plane.conftest import Client, refused, strategy
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining
from tests.services.processes import ServiceProcess


async def failed_operation(client: Client, trainer: ScriptedTrainer) -> tuple[str, list[str]]:
    """A FAILED operation with checkpoints at steps 10 and 20; their names."""
    trainer.script = lambda _training: None
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    committed = [training.checkpoint(10), training.checkpoint(20)]
    for each in committed:
        training.commit(each)
    training.fail(Reason.NON_FINITE_LOSS, "loss is nan")
    await client.until_state(operation_id, OPERATION_STATE_FAILED)
    return operation_id, [each.reference.checkpoint_id for each in committed]


async def test_what_was_created_is_there_after_a_kill(
    client: Client, control_plane: ServiceProcess
) -> None:
    operation_id = await client.create(labels={"team": "vision"}, display_name="first")
    created = await client.get(operation_id)
    control_plane.kill()
    control_plane.start()
    assert await client.get(operation_id) == created
    assert created.display_name == "first"
    assert created.labels["team"] == "vision"
    assert created.strategy.checkpoint.keep_last == 3
    assert created.restart_policy.max_attempts == 5
    assert created.state == OPERATION_STATE_PENDING


async def test_an_operation_without_a_trainer_says_what_it_waits_for(client: Client) -> None:
    operation_id = await client.create()
    assert "none is registered" in (await client.get(operation_id)).waiting_for


async def test_the_same_request_makes_one_operation_of_many_calls(client: Client) -> None:
    request_id = str(uuid.uuid4())
    ids = await asyncio.gather(*(client.create(request_id=request_id) for _ in range(12)))
    assert len(set(ids)) == 1
    error = await refused(client.create(request_id=request_id, display_name="another"))
    assert error.reason is Reason.REQUEST_ID_REUSED
    listed = await client.operations.ListOperations(ListOperationsRequest())
    assert [operation.operation_id for operation in listed.operations] == [ids[0]]


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"strategy": strategy(seed=1), "request_id": "no-uuid"}, "INVALID_REQUEST", "request_id"),
        ({"labels": {"Not a label": "x"}}, "INVALID_REQUEST", 'labels["Not a label"]'),
        ({"strategy": None}, "INVALID_REQUEST", "strategy"),
        ({"from_checkpoint": "../../etc"}, "INVALID_REQUEST", "from_checkpoint"),
        ({"from_checkpoint": "ck-unknown"}, "CHECKPOINT_NOT_FOUND", None),
    ],
)
async def test_a_bad_request_leaves_nothing_behind(
    client: Client, fields: dict[str, Any], reason: str, field: str | None
) -> None:
    error = await refused(client.create(**fields))
    assert error.reason == reason
    if field is not None:
        assert field in [violation.field for violation in error.violations]
    assert not (await client.operations.ListOperations(ListOperationsRequest())).operations


async def test_a_bad_strategy_is_refused_with_its_fields(client: Client) -> None:
    bad = strategy()
    bad.training.epochs = 0
    bad.optimizer.name = ""
    error = await refused(client.create(strategy=bad))
    assert error.reason is Reason.INVALID_STRATEGY
    assert {violation.field for violation in error.violations} == {
        "strategy.training.epochs",
        "strategy.optimizer.name",
    }


async def test_lists_come_in_pages_newest_first_and_filtered(client: Client) -> None:
    ids = [await client.create(labels={"parity": str(i % 2)}) for i in range(7)]
    await client.cancel(ids[0])
    seen: list[str] = []
    token = ""
    while True:
        page = await client.operations.ListOperations(
            ListOperationsRequest(page_size=3, page_token=token)
        )
        seen += [operation.operation_id for operation in page.operations]
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]
    odd = await client.operations.ListOperations(ListOperationsRequest(labels={"parity": "1"}))
    assert [operation.operation_id for operation in odd.operations] == ids[5::-2]
    cancelled = await client.operations.ListOperations(
        ListOperationsRequest(states=[OPERATION_STATE_CANCELLED])
    )
    assert [operation.operation_id for operation in cancelled.operations] == ids[:1]
    none = await client.operations.ListOperations(ListOperationsRequest(resumable=True))
    assert not none.operations
    error = await refused(client.operations.ListOperations(ListOperationsRequest(page_token="%%%")))
    assert error.reason is Reason.INVALID_REQUEST


async def test_unknown_operations_are_not_found(client: Client) -> None:
    for call in (
        client.operations.GetOperation(operations_pb2.GetOperationRequest(operation_id="op-x")),
        client.cancel("op-x"),
        client.resume("op-x"),
        client.watch("op-x"),
        client.operations.DeleteOperation(DeleteOperationRequest(operation_id="op-x")),
        client.operations.CheckpointOperation(
            operations_pb2.CheckpointOperationRequest(operation_id="op-x")
        ),
    ):
        assert (await refused(call)).reason is Reason.OPERATION_NOT_FOUND


async def test_of_many_callers_exactly_one_resumes(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, _ = await failed_operation(client, trainer)
    outcomes = await asyncio.gather(
        *(client.resume(operation_id) for _ in range(40)), return_exceptions=True
    )
    won = [outcome for outcome in outcomes if isinstance(outcome, operations_pb2.Operation)]
    codes = {o.code() for o in outcomes if isinstance(o, grpc.aio.AioRpcError)}
    assert len(won) == 1
    assert codes <= {grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION}
    resumed = await trainer.begun(operation_id, 2)
    resumed.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 2
    assert not operation.HasField("error")


async def test_the_same_resume_request_is_answered_again(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, _ = await failed_operation(client, trainer)
    request_id = str(uuid.uuid4())
    answers = await asyncio.gather(
        *(client.resume(operation_id, request_id=request_id) for _ in range(8))
    )
    assert {answer.operation_id for answer in answers} == {operation_id}
    await trainer.begun(operation_id, 2)
    assert (await client.get(operation_id)).state == OPERATION_STATE_RUNNING
    assert (await refused(client.resume(operation_id))).reason is Reason.ALREADY_RUNNING


async def test_a_resume_without_a_checkpoint_leaves_state_and_error(
    client: Client, trainer: ScriptedTrainer
) -> None:
    trainer.script = lambda training: training.fail(Reason.NON_FINITE_LOSS, "loss is nan")
    operation_id = await client.create()
    before = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    error = await refused(client.resume(operation_id))
    assert error.reason is Reason.NO_CHECKPOINT
    assert (await client.get(operation_id)) == before
    assert before.error.reason == "NON_FINITE_LOSS"
    assert not before.resumable


async def test_a_named_checkpoint_is_used_until_the_resume_has_its_own(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, [older, _] = await failed_operation(client, trainer)
    error = await refused(client.resume(operation_id, checkpoint_id="ck-of-another"))
    assert error.reason is Reason.CHECKPOINT_NOT_FOUND
    await client.resume(operation_id, checkpoint_id=older)
    second = await trainer.begun(operation_id, 2)
    assert second.request.checkpoint.checkpoint_id == older
    second.fail(Reason.TRAINER_RESTARTED, restartable=True)
    # Lost before it had a checkpoint: the named one again, not the newer one of before.
    third = await trainer.begun(operation_id, 3)
    assert third.request.checkpoint.checkpoint_id == older
    own = third.checkpoint(15)
    third.commit(own)
    third.fail(Reason.TRAINER_RESTARTED, restartable=True)
    fourth = await trainer.begun(operation_id, 4)
    assert fourth.request.checkpoint.checkpoint_id == own.reference.checkpoint_id


async def test_a_named_checkpoint_that_is_damaged_fails_and_offers_another(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, [older, newer] = await failed_operation(client, trainer)

    def corrupt(training: ScriptedTraining) -> None:
        training.fail(Reason.CHECKPOINT_CORRUPT, "blob abc is damaged", restartable=True)

    trainer.script = corrupt
    await client.resume(operation_id, checkpoint_id=newer)
    operation = await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert operation.error.reason == Reason.CHECKPOINT_CORRUPT
    assert older in operation.error.message
    assert operation.latest_checkpoint.reference.checkpoint_id == older
    assert len(operation.attempts) == 2


async def test_overrides_are_recorded_and_the_learning_rate_is_set_once(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, _ = await failed_operation(client, trainer)
    error = await refused(client.resume(operation_id, overrides={"epochs": 1}))
    assert error.violations[0].field == "overrides.epochs"
    await client.resume(operation_id, overrides={"epochs": 9, "learning_rate": 0.01})
    second = await trainer.begun(operation_id, 2)
    assert isinstance(second.request, ResumeTrainingRequest)
    assert second.request.overrides == StrategyOverrides(epochs=9, learning_rate=0.01)
    second.fail(Reason.TRAINER_RESTARTED, restartable=True)
    third = await trainer.begun(operation_id, 3)
    assert third.request.overrides == StrategyOverrides(epochs=9, learning_rate=0.01)
    third.commit(third.checkpoint(30))
    third.fail(Reason.TRAINER_RESTARTED, restartable=True)
    # This checkpoint holds the new learning rate, and what the scheduler has made of it since.
    fourth = await trainer.begun(operation_id, 4)
    assert fourth.request.overrides == StrategyOverrides(epochs=9)
    operation = await client.get(operation_id)
    assert operation.overrides == StrategyOverrides(epochs=9, learning_rate=0.01)


async def test_a_completed_operation_is_resumed_only_with_more_epochs(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.commit(training.checkpoint(100))
    training.complete(epochs=3)
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    for overrides in (None, {"epochs": 3}, {"learning_rate": 0.1}):
        error = await refused(client.resume(operation_id, overrides=overrides))
        assert error.reason in (Reason.ALREADY_COMPLETED, Reason.INVALID_REQUEST)
    assert (await client.get(operation_id)).state == OPERATION_STATE_COMPLETED
    # The checkpoint of this script stands at epoch 10.
    operation = await client.resume(operation_id, overrides={"epochs": 12})
    assert operation.position.fraction == pytest.approx(3 / 12)
    extended = await trainer.begun(operation_id, 2)
    extended.complete(epochs=12)
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert operation.result.epochs == 12


async def test_one_that_stopped_early_and_is_extended_is_as_far_as_its_steps(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.commit(training.checkpoint(40))
    training.say(step=40, fraction=1.0, completed={"result": {"epochs": 2, "stopped_early": True}})
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert operation.position.fraction == 1.0
    assert not operation.position.HasField("eta_seconds")
    operation = await client.resume(operation_id, overrides={"epochs": 6})
    assert operation.position.fraction == pytest.approx(0.4 * 3 / 6)


async def test_a_finished_operation_cannot_be_cancelled_and_a_queued_one_ends_at_once(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, _ = await failed_operation(client, trainer)
    assert (await refused(client.cancel(operation_id))).reason is Reason.ALREADY_FINISHED
    await trainer.announce(draining=True)
    await trainer.stop()
    queued = await client.create()
    assert (await client.cancel(queued)).state == OPERATION_STATE_CANCELLED
    assert (await client.cancel(queued)).state == OPERATION_STATE_CANCELLED


async def test_a_fork_begins_with_the_checkpoint_of_its_parent(
    client: Client, trainer: ScriptedTrainer
) -> None:
    parent, [older, _] = await failed_operation(client, trainer)
    fork = await client.create(from_checkpoint=older)
    training = await trainer.begun(fork)
    assert training.request.checkpoint.checkpoint_id == older
    operation = await client.get(fork)
    assert operation.parent_operation_id == parent
    assert operation.from_checkpoint.checkpoint_id == older
    assert operation.attempts[0].first_step == 11
    error = await refused(
        client.operations.DeleteOperation(DeleteOperationRequest(operation_id=parent))
    )
    assert error.reason is Reason.CHECKPOINT_IN_USE
    training.complete()
    await client.until_state(fork, OPERATION_STATE_COMPLETED)
    await client.operations.DeleteOperation(DeleteOperationRequest(operation_id=parent))


async def test_only_a_finished_operation_is_deleted(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    request = DeleteOperationRequest(operation_id=operation_id)
    error = await refused(client.operations.DeleteOperation(request))
    assert error.reason is Reason.NOT_FINISHED
    training.complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    await client.operations.DeleteOperation(request)
    assert (await refused(client.get(operation_id))).reason is Reason.OPERATION_NOT_FOUND
    assert (await refused(client.watch(operation_id))).reason is Reason.OPERATION_NOT_FOUND
