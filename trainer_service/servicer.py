"""TrainerService on the wire: translate, call, translate back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import grpc

from everstep.errors import Reason
from everstep.rpc.opening import say_opened
from everstep.strategy import resolve_strategy, validate_message
from everstep.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy
from trainer_service.progress import AttemptProgress
from trainer_service.training_worker import TrainingRequest
from trainer_service.trainings import Trainings

Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Runs trainings for whoever calls."""

    def __init__(self, trainings: Trainings, capacity: int) -> None:
        self._trainings = trainings
        self._capacity = capacity

    async def StartTraining(
        self, request: trainer_pb2.StartTrainingRequest, context: Context
    ) -> AsyncIterator[TrainingProgress]:
        progress = await self._trainings.begin(
            TrainingRequest(
                operation_id=request.operation_id,
                attempt=request.attempt or 1,
                strategy=_resolved(request.strategy),
                checkpoint=None,
                overrides=StrategyOverrides(),
            )
        )
        await say_opened(context)
        async for event in _follow(progress, 0, request.batches):
            yield event

    async def ResumeTraining(
        self, request: trainer_pb2.ResumeTrainingRequest, context: Context
    ) -> AsyncIterator[TrainingProgress]:
        progress = await self._trainings.begin(
            TrainingRequest(
                operation_id=request.operation_id,
                attempt=request.attempt or 1,
                strategy=_resolved(request.strategy),
                checkpoint=request.checkpoint,
                overrides=request.overrides,
                fork=request.fork,
            )
        )
        await say_opened(context)
        async for event in _follow(progress, 0, request.batches):
            yield event

    async def WatchTraining(
        self, request: trainer_pb2.WatchTrainingRequest, context: Context
    ) -> AsyncIterator[TrainingProgress]:
        progress = self._trainings.find(request.operation_id, request.attempt)
        await say_opened(context)
        async for event in _follow(progress, request.after_index, request.batches):
            yield event

    async def CancelTraining(
        self, request: trainer_pb2.CancelTrainingRequest, _context: Context
    ) -> trainer_pb2.CancelTrainingResponse:
        await self._trainings.cancel(request.operation_id, request.attempt, request.discard)
        return trainer_pb2.CancelTrainingResponse()

    async def HandOverTraining(
        self, request: trainer_pb2.HandOverTrainingRequest, _context: Context
    ) -> trainer_pb2.HandOverTrainingResponse:
        await self._trainings.hand_over(request.operation_id, request.attempt)
        return trainer_pb2.HandOverTrainingResponse()

    async def CheckpointTraining(
        self, request: trainer_pb2.CheckpointTrainingRequest, _context: Context
    ) -> trainer_pb2.CheckpointTrainingResponse:
        await self._trainings.take_checkpoint(request.operation_id, request.attempt)
        return trainer_pb2.CheckpointTrainingResponse()

    async def ListTrainings(
        self, _request: trainer_pb2.ListTrainingsRequest, _context: Context
    ) -> trainer_pb2.ListTrainingsResponse:
        return trainer_pb2.ListTrainingsResponse(
            trainings=self._trainings.list(),
            capacity=self._capacity if await self._trainings.takes_work() else 0,
        )

    async def ForgetTraining(
        self, request: trainer_pb2.ForgetTrainingRequest, _context: Context
    ) -> trainer_pb2.ForgetTrainingResponse:
        await self._trainings.forget(request.operation_id, request.attempt)
        return trainer_pb2.ForgetTrainingResponse()


def _follow(
    progress: AttemptProgress, after_index: int, batches: bool
) -> AsyncIterator[TrainingProgress]:
    # The interceptor sends bytes as they are; the stub's type knows messages alone.
    return cast(AsyncIterator[TrainingProgress], progress.follow(after_index, batches))


def _resolved(strategy: TrainingStrategy) -> TrainingStrategy:
    resolved = resolve_strategy(strategy)
    validate_message(resolved, Reason.INVALID_STRATEGY)
    return resolved
