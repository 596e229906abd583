"""The operations of one example: what is done to them, and that they are where the model is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import grpc

from control_plane.states import State
from everstep.control.v1.operations_pb2 import (
    CreateOperationRequest,
    ListOperationsRequest,
    Operation,
    OperationEvent,
    ResumeOperationRequest,
)
from everstep.errors import EverstepError, Reason
from everstep.rpc.options import open_channel
from everstep.rpc.status import error_from_call
from tests.control_plane.conftest import LEASE_SECONDS, Client, assert_whole, refused, strategy
from tests.control_plane.operation_checks import check_attempts, check_changes
from tests.control_plane.operation_model import (
    CANCELLED,
    FAILED,
    MAX_ATTEMPTS,
    OPEN,
    PENDING,
    OperationModel,
)
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining, until
from tests.services.processes import ServiceProcess

T = TypeVar("T")
Wanted = Callable[[OperationEvent], bool]


class Laboratory:
    """A control plane and a trainer for all examples, and the loop in which both are spoken to."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self.examples = count(1)
        self.control_plane = ServiceProcess(
            "control_plane",
            {
                "EVERSTEP_DATABASE_URL": f"sqlite:///{folder / 'control-plane.db'}",
                "EVERSTEP_STORE_URL": (folder / "store").as_uri(),
                "EVERSTEP_LEASE_SECONDS": str(LEASE_SECONDS),
            },
            folder / "control-plane.log",
        ).start()
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The trainer hears and speaks while something runs."""
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._close())
        self._runner.close()
        self.control_plane.kill()

    async def _open(self) -> None:
        self._channel = open_channel(self.control_plane.address)
        self.client = Client(self._channel)
        self.trainer = ScriptedTrainer("trainer-1", self.control_plane.address, capacity=1000)
        await self.trainer.start()

    async def _close(self) -> None:
        await self.trainer.close()
        await self._channel.close()


class OperationScene:
    """Does what is drawn to the real services, and holds them against the models."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.lab = laboratory
        self.client, self.trainer = laboratory.client, laboratory.trainer
        self.models: list[OperationModel] = []
        self._label = {"example": str(next(laboratory.examples))}
        self._creations: dict[str, CreateOperationRequest] = {}
        #: What a watcher that came first has seen of each operation.
        self._watched: dict[str, list[OperationEvent]] = {}

    def training_of(self, model: OperationModel) -> ScriptedTraining:
        """The open attempt, at its trainer."""
        return self.trainer.trainings[model.operation_id, model.attempt]

    async def expect(
        self,
        call: Callable[[], Awaitable[T]],
        reason: Reason | None,
        check: Callable[[T], None] = lambda _answer: None,
    ) -> None:
        """The call is answered, or refused with this reason."""
        if reason is not None:
            error = await refused(call())
            assert error.reason is reason, f"{error.reason} {error.message}, not {reason}"
            return
        check(await call())

    async def create(self, epochs: int) -> OperationModel:
        request = CreateOperationRequest(
            request_id=str(uuid.uuid4()),
            strategy=strategy(
                training={"epochs": epochs, "batch_size": 32}, checkpoint={"keep_last": 100}
            ),
            restart_policy={"max_attempts": MAX_ATTEMPTS, "backoff_seconds": 0.0},
            labels=self._label,
        )
        answer = await self.client.operations.CreateOperation(request, timeout=10)
        name = f"operation {len(self.models) + 1}"
        model = OperationModel(name, answer.operation_id, epochs)
        self.models.append(model)
        self._creations[name] = request
        self._watched[name] = []
        return model

    async def create_refused(self, epochs: int) -> None:
        """The trainer says that it is full, until the log says so."""
        self.trainer.refusal = EverstepError(Reason.NO_CAPACITY, "the trainer is full")
        model = await self.create(epochs)
        await self.follow(model, lambda event: event.state_changed.reason == "REFUSED")
        self.trainer.refusal = None

    def creation(self, model: OperationModel) -> CreateOperationRequest:
        """A copy of the request that made it."""
        request = CreateOperationRequest()
        request.CopyFrom(self._creations[model.name])
        return request

    async def resumed_at_once(
        self, request: ResumeOperationRequest, callers: int
    ) -> tuple[list[Operation], list[Reason]]:
        """The same resume by so many callers: the answers, and the reasons of the others."""
        resume = self.client.operations.ResumeOperation
        outcomes = await asyncio.gather(
            *(resume(request, timeout=10) for _ in range(callers)),
            return_exceptions=True,
        )
        answers = [outcome for outcome in outcomes if isinstance(outcome, Operation)]
        errors = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert len(answers) + len(errors) == callers, outcomes
        return answers, [error_from_call(error).reason for error in errors]

    async def listed(self, state: str, resumable: bool) -> list[str]:
        """The operations of this example that a list names, two on a page."""
        found: list[str] = []
        token = ""
        while True:
            request = ListOperationsRequest(
                states=[State(state).message],
                resumable=resumable,
                labels=self._label,
                page_size=2,
                page_token=token,
            )
            page = await self.client.operations.ListOperations(request, timeout=10)
            found += [operation.operation_id for operation in page.operations]
            token = page.next_page_token
            if not token:
                return found

    async def stored(self, model: OperationModel, training: ScriptedTraining) -> None:
        """What the trainer has said is in the log."""
        attempt, index = training.attempt, len(training.durable)
        await self.follow(
            model,
            lambda event: event.progress.attempt == attempt and event.progress.index == index,
        )

    async def forget(self, model: OperationModel) -> None:
        """The trainer does not know the attempt any more."""
        del self.trainer.trainings[model.operation_id, model.attempt]
        self.trainer.break_streams()
        await self.follow(model, _ends_attempt)

    async def lose_trainer(self) -> None:
        """It is gone until its lease has ended; what it trained is over by then."""
        lost = [model for model in self.models if model.state in OPEN]
        await self.trainer.stop()
        for model in lost:
            await self.follow(model, _ends_attempt)
            self.training_of(model).say(cancelled={})
            model.lose()
        await self.trainer.start()

    async def asked_to_stop(self, training: ScriptedTraining) -> None:
        await until(lambda: training.cancel_requests, "the trainer to hear the cancellation")

    async def settle(self) -> None:
        """What waits is dispatched, as long as the trainer takes work."""
        if self.trainer.draining:
            return
        for model in self.models:
            if model.state == PENDING and not model.deleted:
                await self._dispatched(model)

    async def tidy_up(self) -> None:
        """Nothing of this example is left to the next one."""
        for model in self.models:
            if model.state in OPEN:
                training = self.training_of(model)
                training.fail(Reason.NON_FINITE_LOSS)
                await self.stored(model, training)
            elif model.state == PENDING:
                await self.client.cancel(model.operation_id)
        self.trainer.draining = False
        await self.trainer.announce()

    async def check(self, model: OperationModel) -> None:
        """The table, the attempts and the log are as the model and the contract say."""
        if model.deleted:
            error = await refused(self.client.get(model.operation_id))
            assert error.reason is Reason.OPERATION_NOT_FOUND
            return
        operation = await self.client.get(model.operation_id)
        shown = State.of_message(operation.state)
        assert shown == model.state, f"{model}: {shown}, not {model.state}"
        assert operation.error.reason == model.error, f"{model}: {operation.error}"
        assert operation.resumable == model.resumable
        newest = "" if model.newest is None else model.newest.checkpoint_id
        assert operation.latest_checkpoint.reference.checkpoint_id == newest
        check_attempts(model, operation)
        await self.follow(model, lambda event: event.sequence >= operation.last_sequence)
        watched = self._watched[model.name]
        last = watched[-1].sequence
        replay = await self.client.watch(model.operation_id, lambda event: event.sequence >= last)
        assert replay == watched, f"{model}: a late watcher sees another log"
        assert_whole(watched)
        check_changes(model, watched)

    async def follow(self, model: OperationModel, wanted: Wanted) -> None:
        """Watches on until an event is wanted."""
        watched = self._watched[model.name]
        if watched and wanted(watched[-1]):
            return
        fresh = await self.client.watch(
            model.operation_id, wanted, watched[-1].sequence if watched else 0
        )
        watched += fresh
        assert fresh, f"{model}: its watch ended before what was waited for"
        assert wanted(fresh[-1]), f"{model}: its watch ended with {fresh[-1]}"

    async def _dispatched(self, model: OperationModel) -> None:
        """Takes the attempt that the trainer was given into the model; refused ones came first."""
        first = model.attempt + 1

        def begun() -> ScriptedTraining | None:
            numbers = [
                number
                for operation_id, number in self.trainer.trainings
                if operation_id == model.operation_id and number >= first
            ]
            return self.trainer.trainings[model.operation_id, max(numbers)] if numbers else None

        training = await until(begun, f"an attempt of {model}")
        model.dispatch(["REFUSED"] * (training.attempt - first) + [""])
        begins = getattr(training.request, "checkpoint", None)
        given = "" if begins is None else begins.checkpoint_id
        wanted = "" if model.began_with is None else model.began_with.checkpoint_id
        assert given == wanted, f"{model} begins with {given!r}, not {wanted!r}"


def _ends_attempt(event: OperationEvent) -> bool:
    to = event.state_changed.to
    return bool(to) and State.of_message(to) in (PENDING, FAILED, CANCELLED)
