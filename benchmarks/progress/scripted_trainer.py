"""A trainer that computes nothing: it says durable events, at a rate or as fast as they are taken.

`python -m benchmarks.progress.scripted_trainer JSON`, with `control_plane`, `events` and `rate`.
A training says that it has begun, waits until a line comes, and says the rest.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.progress import words
from benchmarks.progress.processes import say, stdin_line
from everstep.control.v1.trainers_pb2 import RegisterTrainerRequest, TrainerEnvironment
from everstep.control.v1.trainers_pb2_grpc import TrainerRegistryServiceStub
from everstep.rpc import serving
from everstep.rpc.options import UNARY_DEADLINE_SECONDS, open_channel
from everstep.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from everstep.training.v1.progress_pb2 import Completed, TrainingProgress
from trainer_service.progress import PAGE_EVENTS

Context = grpc.aio.ServicerContext[Any, Any]
Request = (
    trainer_pb2.StartTrainingRequest
    | trainer_pb2.ResumeTrainingRequest
    | trainer_pb2.WatchTrainingRequest
)


class ScriptedTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Every training of it says the same.

    Args:
        events: Durable events after the first, before the last word.
        rate: Of them in a second; 0: as fast as the stream takes them.
    """

    def __init__(self, events: int, rate: float) -> None:
        self._last_index = words.BEGIN_INDEX + events
        self._rate = rate
        self._begin = asyncio.Event()
        self._began = 0.0

    def begin(self) -> float:
        """Trainings that wait go on; the moment that they do, by time.monotonic()."""
        self._began = time.monotonic()
        self._begin.set()
        return self._began

    async def StartTraining(
        self, request: trainer_pb2.StartTrainingRequest, _context: Context
    ) -> AsyncIterator[TrainingProgress]:
        async for said in self._say(request, 0):
            yield said

    async def WatchTraining(
        self, request: trainer_pb2.WatchTrainingRequest, _context: Context
    ) -> AsyncIterator[TrainingProgress]:
        async for said in self._say(request, request.after_index):
            yield said

    async def ResumeTraining(
        self, request: trainer_pb2.ResumeTrainingRequest, _context: Context
    ) -> AsyncIterator[TrainingProgress]:
        async for said in self._say(request, 0):
            yield said

    async def CancelTraining(
        self, _request: trainer_pb2.CancelTrainingRequest, _context: Context
    ) -> trainer_pb2.CancelTrainingResponse:
        return trainer_pb2.CancelTrainingResponse()

    async def HandOverTraining(
        self, _request: trainer_pb2.HandOverTrainingRequest, _context: Context
    ) -> trainer_pb2.HandOverTrainingResponse:
        return trainer_pb2.HandOverTrainingResponse()

    async def CheckpointTraining(
        self, _request: trainer_pb2.CheckpointTrainingRequest, _context: Context
    ) -> trainer_pb2.CheckpointTrainingResponse:
        return trainer_pb2.CheckpointTrainingResponse()

    async def ListTrainings(
        self, _request: trainer_pb2.ListTrainingsRequest, _context: Context
    ) -> trainer_pb2.ListTrainingsResponse:
        return trainer_pb2.ListTrainingsResponse(capacity=1)

    async def ForgetTraining(
        self, _request: trainer_pb2.ForgetTrainingRequest, _context: Context
    ) -> trainer_pb2.ForgetTrainingResponse:
        return trainer_pb2.ForgetTrainingResponse()

    async def _say(self, request: Request, after: int) -> AsyncIterator[TrainingProgress]:
        named = (request.operation_id, request.attempt)
        if after < words.BEGIN_INDEX:
            yield words.word(*named, words.BEGIN_INDEX)
        await self._begin.wait()
        index = max(after, words.BEGIN_INDEX) + 1
        while index <= self._last_index:
            if self._rate:
                due = self._began + (index - words.BEGIN_INDEX) / self._rate
                await asyncio.sleep(due - time.monotonic())
            said = words.word(*named, index)
            index += 1
            if request.batches and not self._rate:
                # All are there: a trainer then sends as many in a message as these.
                end = min(index + PAGE_EVENTS - 1, self._last_index + 1)
                said.next.extend(words.word(*named, later) for later in range(index, end))
                index = end
            yield said
        last = words.word(*named, self._last_index + 1)
        last.completed.CopyFrom(Completed())
        yield last


async def serve(asked: dict[str, Any]) -> None:
    """Trains until the process is killed."""
    trainer = ScriptedTrainer(asked["events"], asked["rate"])
    server = serving.create_server()
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server)
    address = serving.bind(server, "127.0.0.1:0")
    await server.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_register(asked["control_plane"], address))
        await asyncio.to_thread(stdin_line)
        say(began=trainer.begin())


async def _register(control_plane: str, address: str) -> None:
    async with open_channel(control_plane) as channel:
        registry = TrainerRegistryServiceStub(channel)
        request = RegisterTrainerRequest(
            trainer_id="scripted", address=address, capacity=1, environment=TrainerEnvironment()
        )
        while True:
            answer = await registry.RegisterTrainer(
                request, timeout=UNARY_DEADLINE_SECONDS, wait_for_ready=True
            )
            await asyncio.sleep(answer.lease_seconds / 3)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
