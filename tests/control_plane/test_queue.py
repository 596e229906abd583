"""The queue: who runs first, who runs where, and that nobody is held up by those who cannot."""

from __future__ import annotations

import asyncio
from typing import Any

from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
    OPERATION_STATE_PENDING,
    OPERATION_STATE_RUNNING,
    CreateOperationRequest,
    ListOperationsRequest,
    UpdateOperationRequest,
)
from everstep.errors import Reason
from tests.control_plane.conftest import Client, StartTrainer, refused, strategy
from tests.control_plane.scripted_trainer import ScriptedTrainer


async def test_higher_priority_runs_first_and_equals_in_the_order_of_their_creation(
    client: Client, trainer: ScriptedTrainer
) -> None:
    first = await client.create()
    running = await trainer.begun(first)
    low = await client.create(priority=-1)
    early = await client.create()
    late = await client.create()
    raised = await client.create(priority=-100)
    high = await client.create(priority=5)
    updated = await client.prioritise(raised, 6)
    assert (updated.priority, updated.state) == (6, OPERATION_STATE_PENDING)
    listed = await client.operations.ListOperations(ListOperationsRequest())
    assert [operation.priority for operation in listed.operations] == [5, 6, 0, 0, -1, 0]
    for operation_id in (raised, high, early, late, low):
        running.complete()
        running = await trainer.begun(operation_id)
    assert [request.operation_id for request in trainer.begin_requests[1:]] == [
        raised,
        high,
        early,
        late,
        low,
    ]


async def test_an_operation_that_lost_its_attempt_keeps_its_place(
    client: Client, trainer: ScriptedTrainer
) -> None:
    first = await client.create()
    second = await client.create()
    (await trainer.begun(first)).fail(Reason.TRAINER_RESTARTED, restartable=True)
    (await trainer.begun(first, 2)).complete()
    (await trainer.begun(second)).complete()
    begun = [(request.operation_id, request.attempt) for request in trainer.begin_requests]
    assert begun == [(first, 1), (first, 2), (second, 1)]


async def test_a_lost_operation_goes_to_another_trainer_first(
    client: Client, start_trainer: StartTrainer
) -> None:
    roomy = await start_trainer("trainer-1", capacity=8)
    operation_id = await client.create()
    training = await roomy.begun(operation_id)
    other = await start_trainer("trainer-2")
    training.fail(Reason.STORE_UNAVAILABLE, restartable=True)
    training = await other.begun(operation_id, 2)
    third = await start_trainer("trainer-3")
    training.fail(Reason.STORE_UNAVAILABLE, restartable=True)
    training = await third.begun(operation_id, 3)
    # Each has lost it once: the one with most room. A step forward forgives all.
    training.fail(Reason.STORE_UNAVAILABLE, restartable=True)
    (await roomy.begun(operation_id, 4)).complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)


async def test_labels_choose_the_trainer(client: Client, start_trainer: StartTrainer) -> None:
    plain = await start_trainer("trainer-1", capacity=4, labels={"gpu": "a100", "site": "lab"})
    chosen = {"gpu": "h100", "site": "lab"}
    operation_id = await client.create(trainer_labels=chosen)
    # It came later and can run: the trainer looked at the queue.
    await plain.begun(await client.create(trainer_labels={"site": "lab"}))
    waiting = await client.get(operation_id)
    assert waiting.state == OPERATION_STATE_PENDING
    assert dict(waiting.trainer_labels) == chosen
    assert "gpu=h100, site=lab" in waiting.waiting_for
    assert "none is registered" in waiting.waiting_for

    fitting = await start_trainer("trainer-2", labels={**chosen, "more": ""})
    await fitting.begun(operation_id)
    assert (await client.get(operation_id)).waiting_for == ""
    second = await client.create(trainer_labels=chosen)
    assert "trainer-2 is full" in (await client.get(second)).waiting_for
    await client.drain("trainer-2")
    assert "trainer-2 takes no work" in (await client.get(second)).waiting_for
    listed = await client.trainers()
    assert dict(listed["trainer-2"].labels) == {**chosen, "more": ""}


async def test_a_trainer_is_chosen_by_the_labels_that_it_has_by_now(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create(trainer_labels={"gpu": "h100"})
    trainer.labels = {"gpu": "h100"}
    await trainer.announce()
    await trainer.begun(operation_id)


async def test_hundreds_that_cannot_run_hold_up_nobody(
    client: Client, start_trainer: StartTrainer
) -> None:
    trainer = await start_trainer("trainer-1", capacity=30)
    for _ in range(6):
        await asyncio.gather(
            *(client.create(trainer_labels={"gpu": "h100"}, priority=100) for _ in range(50))
        )
    ids = [await client.create() for _ in range(30)]
    for operation_id in ids:
        await trainer.begun(operation_id)
    assert {request.operation_id for request in trainer.begin_requests} == set(ids)


async def test_the_list_says_who_runs_what(client: Client, start_trainer: StartTrainer) -> None:
    trainer = await start_trainer("trainer-1", capacity=3, labels={"site": "lab"})
    silent = await start_trainer("trainer-2")
    first = await client.create(display_name="first")
    training = await trainer.begun(first)
    second = await client.create(display_name="second")
    await trainer.begun(second)
    training.epoch(1)
    await client.watch(first, lambda event: event.progress.index == 1)
    await silent.stop()
    listed = await client.trainers()
    while listed["trainer-2"].alive:
        listed = await client.trainers()
    shown = listed["trainer-1"]
    assert (shown.alive, shown.draining, shown.capacity) == (True, False, 3)
    assert [(each.operation_id, each.display_name) for each in shown.running] == [
        (first, "first"),
        (second, "second"),
    ]
    assert list(shown.operation_ids) == [first, second]
    assert (shown.running[0].attempt, shown.running[0].position.step) == (1, 20)
    heard = shown.last_heard_time.ToMicroseconds()
    assert heard > shown.running[1].start_time.ToMicroseconds()
    assert listed["trainer-2"].last_heard_time.ToMicroseconds() < heard


async def test_what_is_no_priority_and_no_label_is_refused(client: Client) -> None:
    refusals: list[dict[str, Any]] = [
        {"priority": 101},
        {"priority": -101},
        {"trainer_labels": {"GPU": "h100"}},
        {"trainer_labels": {"gpu": "x" * 257}},
        {"trainer_labels": {f"label-{number}": "" for number in range(65)}},
    ]
    for fields in refusals:
        request = CreateOperationRequest(strategy=strategy(), **fields)
        error = await refused(client.operations.CreateOperation(request))
        assert error.reason is Reason.INVALID_REQUEST
        assert next(iter(fields)) in error.violations[0].field
    listed = await client.operations.ListOperations(ListOperationsRequest())
    assert not listed.operations


async def test_a_priority_is_changed_in_any_state_and_of_known_operations_alone(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    running = await client.prioritise(operation_id, 7)
    assert (running.priority, running.state) == (7, OPERATION_STATE_RUNNING)
    training.fail(Reason.NON_FINITE_LOSS)
    await client.until_state(operation_id, OPERATION_STATE_FAILED)
    assert (await client.prioritise(operation_id, -7)).priority == -7
    unchanged = await client.operations.UpdateOperation(
        UpdateOperationRequest(operation_id=operation_id)
    )
    assert unchanged.priority == -7
    assert (await refused(client.prioritise(operation_id, 101))).reason is Reason.INVALID_REQUEST
    assert (await refused(client.prioritise("op-no", 1))).reason is Reason.OPERATION_NOT_FOUND
