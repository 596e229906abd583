"""A trainer that is drained: its real training goes on elsewhere, with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED
from everstep.control.v1.trainers_pb2 import (
    DrainTrainerRequest,
    ListTrainersRequest,
    Trainer,
)
from tests.services.commands import runner
from tests.services.processes import ServiceProcess, wait_for
from tests.services.stack import Stack
from tests.services.strategies import digits


def test_draining_moves_a_training_that_repeats_no_step(
    stack: Stack, make_trainer: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    strategy = digits(epochs=6, checkpoint={"every_steps": 0, "every_epochs": 0})
    reference = stack.train(strategy)
    operation_id = stack.create(strategy, restart_policy={"max_attempts": 1})
    stack.watch(operation_id, lambda event: event.progress.position.step > 20)
    make_trainer(
        "trainer-2",
        EVERSTEP_CONTROL_PLANE=stack.control_plane.address,
        EVERSTEP_LABELS="site=lab, kind=spare",
    ).start()

    def trainers() -> dict[str, Trainer]:
        listed = stack.trainers.ListTrainers(ListTrainersRequest(), timeout=10)
        return {trainer.trainer_id: trainer for trainer in listed.trainers}

    second = wait_for(lambda: trainers().get("trainer-2"), "the second trainer")
    assert dict(second.labels) == {"site": "lab", "kind": "spare"}
    everstep = runner(stack.control_plane, tmp_path)
    everstep("trainers", "drain", "trainer-1", "--wait")
    assert not trainers()["trainer-1"].running
    completed = stack.finished(operation_id)
    assert completed.state == OPERATION_STATE_COMPLETED, completed
    assert [(attempt.trainer_id, attempt.end) for attempt in completed.attempts] == [
        ("trainer-1", "HANDED_OVER"),
        ("trainer-2", "COMPLETED"),
    ]
    handed_over, went_on = completed.attempts
    assert 20 < handed_over.last_step < completed.result.steps
    assert went_on.first_step == handed_over.last_step + 1
    assert completed.result.digests == reference.result.digests

    # It is drained and serves yet; undone, it trains again. Nothing was lost on the way.
    assert trainers()["trainer-1"].draining
    stack.trainers.DrainTrainer(DrainTrainerRequest(trainer_id="trainer-2"), timeout=10)
    stack.trainers.DrainTrainer(DrainTrainerRequest(trainer_id="trainer-1", undo=True), timeout=10)
    again = stack.train(digits(epochs=1))
    assert [attempt.trainer_id for attempt in again.attempts] == ["trainer-1"]
