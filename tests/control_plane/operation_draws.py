"""What every rule of the operation machine is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from control_plane.states import State
from everstep.control.v1.operations_pb2 import Operation
from everstep.errors import Reason
from tests.control_plane.operation_model import (
    OPEN,
    PENDING,
    RUNNING,
    STATES,
    OperationModel,
)
from tests.control_plane.operation_scene import Laboratory, OperationScene
from tests.control_plane.scripted_trainer import ScriptedTraining


class DrawnOperations(RuleBasedStateMachine):
    """One example's operations, drawn from and compared; a subclass has the rules."""

    def __init__(self, laboratory: Laboratory) -> None:
        super().__init__()
        self.lab = laboratory
        self.scene = OperationScene(laboratory)
        self.client, self.trainer = laboratory.client, laboratory.trainer

    @property
    def models(self) -> list[OperationModel]:
        return self.scene.models

    def teardown(self) -> None:
        self.lab.run(self.scene.tidy_up())

    @invariant()
    def the_services_are_where_the_model_is(self) -> None:
        for model in self.models:
            self.lab.run(self.scene.check(model))

    def do(self, work: Coroutine[Any, Any, object] | None = None) -> None:
        """Does it, and lets what waits be dispatched."""
        if work is not None:
            self.lab.run(work)
        self.lab.run(self.scene.settle())

    def ask(
        self,
        call: Callable[[], Awaitable[Any]],
        reason: Reason | None,
        model: OperationModel | None = None,
    ) -> None:
        """The call is refused for this reason, or shows the operation in its state."""

        def check(answer: Operation) -> None:
            if model is not None:
                assert answer.operation_id == model.operation_id
                # One that waits may be dispatched by now.
                states = (PENDING, RUNNING) if model.state == PENDING else (model.state,)
                shown = State.of_message(answer.state)
                assert shown in states, f"{model}: answered as {shown}, not {states}"

        self.do(self.scene.expect(call, reason, check))

    def pick(self, data: st.DataObject, models: list[OperationModel]) -> OperationModel:
        return data.draw(st.sampled_from(models), label="operation")

    def known(self) -> list[OperationModel]:
        """Those there are, and the newest of those that were deleted."""
        deleted = [model for model in self.models if model.deleted]
        return [*self.those_in(*STATES), *deleted[-1:]]

    def those_in(self, *states: str) -> list[OperationModel]:
        return [model for model in self.models if model.state in states and not model.deleted]

    def those_that_restore(self) -> list[OperationModel]:
        """Those whose attempt has begun with a checkpoint, and said no more yet."""
        return [
            model
            for model in self.those_in(*OPEN)
            if model.began_with is not None and not model.has_spoken
        ]

    def say(self, model: OperationModel, checkpoints: int) -> None:
        """An epoch is completed, then so many checkpoints are committed."""
        training = self.scene.training_of(model)
        self.complete_epoch(model, training)
        for _ in range(checkpoints):
            checkpoint = training.checkpoint(model.next_step())
            training.commit(checkpoint)
            model.commit(checkpoint.reference.checkpoint_id, checkpoint.step)
        self.do(self.scene.stored(model, training))

    def complete_epoch(self, model: OperationModel, training: ScriptedTraining) -> None:
        training.epoch(model.epochs - 1)
        model.has_spoken = True

    def end(self, model: OperationModel, outcome: str) -> None:
        """The attempt ends without having been asked to."""
        training = self.scene.training_of(model)
        match outcome:
            case "completed":
                training.complete(epochs=model.epochs)
                model.complete()
            case "failed":
                training.fail(Reason.NON_FINITE_LOSS)
                model.fail(Reason.NON_FINITE_LOSS)
            case "lost":
                training.fail(Reason.TRAINER_RESTARTED, restartable=True)
                model.lose()
            case "handed over":
                training.fail(Reason.DRAINING, restartable=True)
                model.hand_over()
            case "forgotten":
                self.say(model, 0)
                self.lab.run(self.scene.forget(model))
                model.lose()
                self.do()
                return
        self.do(self.scene.stored(model, training))

    def stop(self, model: OperationModel, saved: bool) -> None:
        """The attempt ends as it was asked to."""
        training = self.scene.training_of(model)
        self.lab.run(self.scene.asked_to_stop(training))
        word: dict[str, Any] = {}
        if saved:
            word["checkpoint"] = checkpoint = training.checkpoint(model.next_step())
            model.commit(checkpoint.reference.checkpoint_id, checkpoint.step)
        training.say(cancelled=word)
        model.acknowledge()
        self.do(self.scene.stored(model, training))
