"""Callers, a trainer and kills, drawn: after each step the services must be where the model is."""

from __future__ import annotations

import uuid

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from everstep.control.v1 import checkpoints_pb2, operations_pb2
from everstep.control.v1.operations_pb2 import ResumeOperationRequest
from everstep.errors import Reason
from tests.control_plane.operation_draws import DrawnOperations
from tests.control_plane.operation_model import (
    CANCELLING,
    FINAL,
    OPEN,
    STATES,
    OperationModel,
)

#: Operations of one example.
MOST_OPERATIONS = 3
#: What an example may bring beside calls and words.
WEATHER = (*["calm"] * 9, "control plane killed", "trainer lost", "trainer full")
#: How an attempt may end.
OUTCOMES = ("completed", "failed", "lost", "handed over", "forgotten")


class OperationMachine(DrawnOperations):
    """One example: up to three operations, from nothing to wherever the draws lead."""

    weather = ""

    # The weather.

    @initialize(
        weather=st.sampled_from(WEATHER),
        checkpoints=st.sampled_from((0, 1, 2, 2)),
        outcome=st.sampled_from(("running", "stopped", "stopped", "failed", *OUTCOMES)),
        resumed=st.sampled_from(("not", "from the newest", "from the oldest")),
    )
    def begin(self, weather: str, checkpoints: int, outcome: str, resumed: str) -> None:
        """One operation, which may have come far."""
        self.weather = weather
        self.create(epochs=2)
        model = self.models[0]
        self.say(model, checkpoints)
        if outcome == "stopped":
            model.cancel()
            self.ask(lambda: self.client.cancel(model.operation_id), None, model)
            self.stop(model, saved=False)
        elif outcome != "running":
            self.end(model, outcome)
        if model.resumable and resumed != "not":
            oldest = model.checkpoints[0].checkpoint_id
            self.ask_to_resume(model, oldest if "oldest" in resumed else "", None)

    @rule()
    def the_trainer_takes_no_more_work_or_takes_it_again(self) -> None:
        self.trainer.draining = not self.trainer.draining
        self.do(self.trainer.announce())

    @precondition(lambda self: self.weather == "control plane killed" and self.known())
    @rule(meanwhile=st.sampled_from(("nothing", "an epoch", "the end")))
    def the_control_plane_is_killed(self, meanwhile: str) -> None:
        self.weather = "calm"
        self.lab.control_plane.kill()
        speaking = self.those_in(*OPEN) if meanwhile != "nothing" else []
        for model in speaking:
            training = self.scene.training_of(model)
            if meanwhile == "the end":
                training.complete(epochs=model.epochs)
                model.complete()
            else:
                self.complete_epoch(model, training)
        self.lab.control_plane.start()
        self.lab.run(self.client.reached())
        for model in speaking:
            self.lab.run(self.scene.stored(model, self.scene.training_of(model)))
        self.do()

    @precondition(lambda self: self.weather == "trainer lost" and self.those_in(*OPEN))
    @rule()
    def the_trainer_is_lost_and_comes_back(self) -> None:
        self.weather = "calm"
        self.do(self.scene.lose_trainer())

    # What callers ask.

    @precondition(lambda self: len(self.those_in(*STATES)) < MOST_OPERATIONS)
    @rule(epochs=st.integers(2, 4))
    def create(self, epochs: int) -> None:
        if self.weather == "trainer full" and not self.trainer.draining:
            self.weather = "calm"
            self.do(self.scene.create_refused(epochs))
        else:
            self.do(self.scene.create(epochs))

    @precondition(lambda self: self.those_in(*STATES))
    @rule(data=st.data(), changed=st.booleans())
    def create_again(self, data: st.DataObject, changed: bool) -> None:
        model = self.pick(data, self.those_in(*STATES))
        request = self.scene.creation(model)
        if changed:
            request.display_name = "another"
        self.ask(
            lambda: self.client.operations.CreateOperation(request, timeout=10),
            Reason.REQUEST_ID_REUSED if changed else None,
            model,
        )

    @precondition(lambda self: self.known())
    @rule(data=st.data(), discard=st.booleans(), again=st.booleans())
    def cancel(self, data: st.DataObject, discard: bool, again: bool) -> None:
        model = self.pick(data, self.known())
        for _ in range(1 + again):
            reason = model.refuses_cancel()
            if reason is None:
                model.cancel()
            self.ask(lambda: self.client.cancel(model.operation_id, discard=discard), reason, model)

    @precondition(lambda self: self.known())
    @rule(
        data=st.data(),
        more_epochs=st.sampled_from((None, 0, 1, 2)),
        named=st.booleans(),
        callers=st.sampled_from((1, 1, 2, 4)),
        same_request=st.booleans(),
    )
    def resume(
        self,
        data: st.DataObject,
        more_epochs: int | None,
        named: bool,
        callers: int,
        same_request: bool,
    ) -> None:
        """Of many callers one wins; those who say the same request are all answered."""
        # Finished ones twice: the others refuse it whatever is asked.
        model = self.pick(data, [*self.those_in(*FINAL), *self.known()])
        epochs = None if more_epochs is None else model.epochs + more_epochs
        checkpoint_id = ""
        if named:
            ids = [one.checkpoint_id for one in model.checkpoints]
            ids = [*ids, *ids, *model.gone[:1], "ck-unknown"]
            checkpoint_id = data.draw(st.sampled_from(ids), label="checkpoint")
        self.ask_to_resume(model, checkpoint_id, epochs, callers, same_request)

    def ask_to_resume(
        self,
        model: OperationModel,
        checkpoint_id: str,
        epochs: int | None,
        callers: int = 1,
        same_request: bool = False,
    ) -> None:
        request = ResumeOperationRequest(
            operation_id=model.operation_id,
            checkpoint_id=checkpoint_id,
            overrides=None if epochs is None else {"epochs": epochs},
            request_id=str(uuid.uuid4()) if same_request else "",
        )
        reason = model.refuses_resume(checkpoint_id, epochs)
        won, lost = self.lab.run(self.scene.resumed_at_once(request, callers))
        if reason is not None:
            assert (won, set(lost)) == ([], {reason}), f"{model}: {lost}, not {reason}"
            return
        model.resume(checkpoint_id, epochs)
        self.do()
        if not same_request:
            assert len(won) == 1, f"{len(won)} of {callers} callers resumed {model}"
            assert set(lost) <= {Reason.RESUME_CONFLICT, Reason.ALREADY_RUNNING}, lost
            return
        assert not lost, f"{model}: {lost}"
        self.resume_again(model, request)

    def resume_again(self, model: OperationModel, request: ResumeOperationRequest) -> None:
        """It is answered again, whatever has become of the operation since."""
        stub = self.client.operations
        self.ask(lambda: stub.ResumeOperation(request, timeout=10), None, model)
        request.overrides.epochs += 7
        self.ask(lambda: stub.ResumeOperation(request, timeout=10), Reason.REQUEST_ID_REUSED)

    @precondition(lambda self: len(self.those_in(*STATES)) > 1)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        model = self.pick(data, self.known())
        reason = model.refuses_delete()
        if reason is None:
            model.delete()
        request = operations_pb2.DeleteOperationRequest(operation_id=model.operation_id)
        self.ask(lambda: self.client.operations.DeleteOperation(request, timeout=10), reason)

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def checkpoint_now(self, data: st.DataObject) -> None:
        model = self.pick(data, self.known())
        reason = model.refuses_checkpoint_now()
        asked = 0 if reason else self.scene.training_of(model).checkpoint_requests
        request = operations_pb2.CheckpointOperationRequest(operation_id=model.operation_id)
        self.ask(lambda: self.client.operations.CheckpointOperation(request, timeout=10), reason)
        if reason is None:
            assert self.scene.training_of(model).checkpoint_requests == asked + 1

    @precondition(lambda self: any(model.checkpoints for model in self.models))
    @rule(data=st.data(), pinned=st.booleans(), deleted=st.booleans())
    def pin_and_delete_checkpoints(self, data: st.DataObject, pinned: bool, deleted: bool) -> None:
        model = self.pick(data, [model for model in self.models if model.checkpoints])
        checkpoint = data.draw(st.sampled_from(model.checkpoints), label="checkpoint")
        checkpoint_id, stub = checkpoint.checkpoint_id, self.client.checkpoints
        pin = checkpoints_pb2.UpdateCheckpointRequest(checkpoint_id=checkpoint_id, pinned=pinned)
        self.ask(lambda: stub.UpdateCheckpoint(pin, timeout=10), None)
        checkpoint.pinned = pinned
        if not deleted:
            return
        reason = model.refuses_deleting(checkpoint)
        if reason is None:
            model.delete_checkpoint(checkpoint)
        delete = checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=checkpoint_id)
        for expected in (reason, reason or Reason.CHECKPOINT_NOT_FOUND):
            self.ask(lambda: stub.DeleteCheckpoint(delete, timeout=10), expected)

    @rule(state=st.sampled_from(STATES), resumable=st.booleans())
    def list_in_pages(self, state: str, resumable: bool) -> None:
        wanted = [
            model.operation_id
            for model in reversed(self.those_in(state))
            if model.resumable or not resumable
        ]
        assert self.lab.run(self.scene.listed(state, resumable)) == wanted

    # What the trainer says.

    @precondition(lambda self: self.those_in(*OPEN))
    @rule(data=st.data(), checkpoints=st.integers(0, 2))
    def an_epoch_is_completed(self, data: st.DataObject, checkpoints: int) -> None:
        self.say(self.pick(data, self.those_in(*OPEN)), checkpoints)

    @precondition(lambda self: self.those_in(*OPEN))
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def it_ends(self, data: st.DataObject, outcome: str) -> None:
        self.end(self.pick(data, self.those_in(*OPEN)), outcome)

    @precondition(lambda self: self.those_in(CANCELLING))
    @rule(data=st.data(), saved=st.booleans())
    def it_stops_as_asked(self, data: st.DataObject, saved: bool) -> None:
        self.stop(self.pick(data, self.those_in(CANCELLING)), saved)

    @precondition(lambda self: self.those_that_restore())
    @rule(data=st.data())
    def its_checkpoint_cannot_be_read(self, data: st.DataObject) -> None:
        model = self.pick(data, self.those_that_restore())
        training = self.scene.training_of(model)
        training.fail(Reason.CHECKPOINT_CORRUPT, "blob abc is damaged", restartable=True)
        model.find_unreadable()
        self.do(self.scene.stored(model, training))
