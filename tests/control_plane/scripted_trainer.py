"""A trainer that says what a test tells it to: a real TrainerService on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import grpc

from everstep.control.v1.trainers_pb2 import RegisterTrainerRequest, TrainerEnvironment
from everstep.control.v1.trainers_pb2_grpc import TrainerRegistryServiceStub
from everstep.errors import EverstepError, Reason
from everstep.rpc import serving
from everstep.rpc.opening import say_opened
from everstep.rpc.options import open_channel
from everstep.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from everstep.training.v1 import progress_pb2
from everstep.training.v1.checkpoint_pb2 import Checkpoint, CheckpointReference
from everstep.training.v1.progress_pb2 import TrainingProgress

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

PATIENCE_SECONDS = 30.0


async def until(condition: Callable[[], T | None], what: str) -> T:
    """The condition's first true value; fails after a deadline."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        value = condition()
        if value:
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE_SECONDS} s in vain for {what}")


class ScriptedTraining:
    """One attempt: the test says its words."""

    def __init__(self, operation_id: str, attempt: int, request: Any) -> None:
        self.operation_id = operation_id
        self.attempt = attempt
        #: The StartTrainingRequest or ResumeTrainingRequest that began it.
        self.request = request
        self.durable: list[TrainingProgress] = []
        #: The newest transient event of each kind.
        self.shown: dict[str, TrainingProgress] = {}
        self.finished = False
        self.cancel_requests: list[trainer_pb2.CancelTrainingRequest] = []
        #: How often it was asked to stop for another trainer to go on.
        self.hand_over_requests = 0
        self.checkpoint_requests = 0
        self._changed = asyncio.Event()

    def say(self, *, step: int = 0, fraction: float = 0.0, **event: Any) -> TrainingProgress:
        """A durable event, with the next index."""
        word = TrainingProgress(
            operation_id=self.operation_id,
            attempt=self.attempt,
            index=len(self.durable) + 1,
            position=progress_pb2.TrainingPosition(step=step, total_steps=100, fraction=fraction),
            **event,
        )
        word.time.GetCurrentTime()
        self.durable.append(word)
        self.finished = word.WhichOneof("event") in ("completed", "failed", "cancelled")
        self._wake()
        return word

    def show(self, step: int, loss: float) -> None:
        """Step metrics."""
        self.transient(
            step=step,
            step_metrics=progress_pb2.StepMetrics(
                loss=loss, learning_rate=0.1, examples_per_second=1.0
            ),
        )

    def transient(self, *, step: int = 0, **event: Any) -> None:
        """A transient event; without a step its position is not known."""
        word = TrainingProgress(operation_id=self.operation_id, attempt=self.attempt, **event)
        if step:
            word.position.CopyFrom(
                progress_pb2.TrainingPosition(step=step, total_steps=100, fraction=step / 100)
            )
        kind = word.WhichOneof("event") or ""
        self.shown.pop(kind, None)
        self.shown[kind] = word
        self._wake()

    def epoch(self, number: int, **metrics: float) -> None:
        self.say(
            step=10 * (number + 1),
            fraction=(number + 1) / 10,
            epoch_completed={"epoch": number, "metrics": metrics, "learning_rate": 0.1},
        )

    def checkpoint(self, step: int) -> Checkpoint:
        """A checkpoint of this attempt that only the registry knows."""
        checkpoint_id = f"ck-{self.operation_id}-{self.attempt}-{step}"
        return Checkpoint(
            reference=CheckpointReference(
                checkpoint_id=checkpoint_id,
                manifest_key=f"operations/{self.operation_id}/attempts/{self.attempt}"
                f"/checkpoints/{checkpoint_id}.json",
                manifest_digest="0" * 64,
            ),
            operation_id=self.operation_id,
            attempt=self.attempt,
            epoch=step // 10,
            step=step,
        )

    def commit(self, checkpoint: Checkpoint) -> None:
        self.say(
            step=checkpoint.step,
            fraction=checkpoint.step / 100,
            checkpoint_committed={"checkpoint": checkpoint},
        )

    def complete(self, checkpoint: Checkpoint | None = None, epochs: int = 3) -> None:
        self.say(
            step=100,
            fraction=1.0,
            completed={
                "result": progress_pb2.TrainingResult(
                    epochs=epochs, steps=100, checkpoint=checkpoint
                )
            },
        )

    def hand_over(self, step: int) -> None:
        """Stops with a checkpoint, as it is asked to."""
        self.commit(self.checkpoint(step))
        self.fail(Reason.DRAINING, "handed over, as asked", restartable=True)

    def fail(self, reason: Reason, message: str = "it broke", *, restartable: bool = False) -> None:
        self.say(
            failed={"error": {"reason": reason, "message": message, "restartable": restartable}}
        )

    async def follow(self, after: int, batches: bool) -> AsyncIterator[TrainingProgress]:
        cursor = after
        shown: list[TrainingProgress] = []
        while True:
            self._changed.clear()
            while cursor < len(self.durable):
                end = len(self.durable) if batches else cursor + 1
                message = TrainingProgress()
                message.CopyFrom(self.durable[cursor])
                message.next.extend(self.durable[cursor + 1 : end])
                yield message
                cursor = end
            if self.finished:
                return
            seen, shown = shown, list(self.shown.values())
            for word in shown:
                if not any(word is earlier for earlier in seen):
                    yield word
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class ScriptedTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Keeps what it is asked, and does what the test says."""

    def __init__(
        self,
        trainer_id: str,
        control_plane: str,
        capacity: int = 1,
        labels: Mapping[str, str] | None = None,
        torch_version: str = "2.13.0",
    ) -> None:
        self.trainer_id = trainer_id
        self.labels = dict(labels or {})
        self.address = "127.0.0.1:0"
        self.capacity = capacity
        self.torch_version = torch_version
        #: Announces that it takes no new work.
        self.draining = False
        #: Says no to new attempts with this.
        self.refusal: EverstepError | None = None
        #: Begins an attempt with words of its own.
        self.script: Callable[[ScriptedTraining], None] = lambda _training: None
        self.trainings: dict[tuple[str, int], ScriptedTraining] = {}
        self.forgotten: set[tuple[str, int]] = set()
        self.watch_requests: list[trainer_pb2.WatchTrainingRequest] = []
        self.begin_requests: list[Any] = []
        #: Trainings of others, which the control plane does not know of.
        self.occupied = 0
        #: How often it was heard by the control plane.
        self.announced = 0
        self._registry_channel = open_channel(control_plane)
        self._server: grpc.aio.Server | None = None
        self._streams: set[asyncio.Task[Any]] = set()
        self._heartbeat: asyncio.Task[None] | None = None
        self._announcing = asyncio.Lock()

    async def start(self) -> ScriptedTrainer:
        """Serves and announces itself; the same address after a stop."""
        self._server = serving.create_server()
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(self, self._server)
        self.address = serving.bind(self._server, self.address)
        await self._server.start()
        await self.announce()
        if self._heartbeat is None or self._heartbeat.done():
            self._heartbeat = asyncio.create_task(self._beat())
        return self

    async def stop(self) -> None:
        """Gone, without a word."""
        await self.fall_silent()
        await self.stop_serving()

    async def fall_silent(self) -> None:
        """No heartbeat any more; its streams stay open."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)

    async def stop_serving(self) -> None:
        """It cannot be reached any more; its heartbeat goes on."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def close(self) -> None:
        await self.stop()
        await self._registry_channel.close()

    def break_streams(self) -> None:
        """Every stream ends with UNAVAILABLE."""
        for stream in self._streams:
            stream.cancel()

    async def announce(self, *, draining: bool = False) -> float:
        # One at a time: what was said first must not be heard last.
        async with self._announcing:
            response = await TrainerRegistryServiceStub(self._registry_channel).RegisterTrainer(
                RegisterTrainerRequest(
                    trainer_id=self.trainer_id,
                    address=self.address,
                    capacity=self.capacity,
                    environment=TrainerEnvironment(torch_version=self.torch_version),
                    draining=draining or self.draining,
                    labels=self.labels,
                ),
                timeout=PATIENCE_SECONDS,
                wait_for_ready=True,
            )
        self.announced += 1
        return response.lease_seconds

    async def begun(self, operation_id: str, attempt: int = 1) -> ScriptedTraining:
        """The attempt, once the control plane has begun it here."""
        return await until(
            lambda: self.trainings.get((operation_id, attempt)),
            f"attempt {attempt} of {operation_id} on {self.trainer_id}",
        )

    async def _beat(self) -> None:
        while True:
            try:
                lease = await self.announce()
            except grpc.aio.AioRpcError:
                lease = 0.3
            await asyncio.sleep(lease / 3)

    async def StartTraining(self, request: Any, context: Context) -> AsyncIterator[Any]:
        async for word in self._begin(request, context):
            yield word

    async def ResumeTraining(self, request: Any, context: Context) -> AsyncIterator[Any]:
        async for word in self._begin(request, context):
            yield word

    async def WatchTraining(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.watch_requests.append(request)
        training = self._find(request)
        async for word in self._stream(training, request.after_index, request.batches, context):
            yield word

    async def CancelTraining(self, request: Any, _context: Context) -> Any:
        self._find(request).cancel_requests.append(request)
        return trainer_pb2.CancelTrainingResponse()

    async def HandOverTraining(self, request: Any, _context: Context) -> Any:
        self._find(request).hand_over_requests += 1
        return trainer_pb2.HandOverTrainingResponse()

    async def CheckpointTraining(self, request: Any, _context: Context) -> Any:
        self._find(request).checkpoint_requests += 1
        return trainer_pb2.CheckpointTrainingResponse()

    async def ListTrainings(self, _request: Any, _context: Context) -> Any:
        running = [t for t in self.trainings.values() if not t.finished]
        return trainer_pb2.ListTrainingsResponse(
            trainings=[
                trainer_pb2.Training(operation_id=t.operation_id, attempt=t.attempt)
                for t in running
            ]
            + [trainer_pb2.Training(operation_id="other", attempt=1)] * self.occupied,
            capacity=self.capacity,
        )

    async def ForgetTraining(self, request: Any, _context: Context) -> Any:
        key = (request.operation_id, request.attempt)
        training = self.trainings.get(key)
        if training is not None and not training.finished:
            raise EverstepError(Reason.NOT_FINISHED, "it runs")
        self.forgotten.add(key)
        return trainer_pb2.ForgetTrainingResponse()

    async def _begin(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.begin_requests.append(request)
        key = (request.operation_id, request.attempt)
        if key not in self.trainings:
            if self.refusal is not None:
                raise self.refusal
            self.trainings[key] = ScriptedTraining(*key, request)
            self.script(self.trainings[key])
        async for word in self._stream(self.trainings[key], 0, request.batches, context):
            yield word

    async def _stream(
        self, training: ScriptedTraining, after: int, batches: bool, context: Context
    ) -> AsyncIterator[Any]:
        await say_opened(context)
        words = training.follow(after, batches)
        while True:
            following = asyncio.ensure_future(anext(words, None))
            self._streams.add(following)
            try:
                word = await following
            except asyncio.CancelledError:
                if not following.cancelled() or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    raise
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream breaks")
            finally:
                self._streams.discard(following)
            if word is None:
                return
            yield word

    def _find(self, request: Any) -> ScriptedTraining:
        training = self.trainings.get((request.operation_id, request.attempt))
        if training is None:
            raise EverstepError(Reason.TRAINING_NOT_FOUND, "there is no such training")
        return training
