"""TrainerRegistryService on the wire."""

from __future__ import annotations

from typing import Any

import grpc

from control_plane.trainers import Trainers
from everstep.control.v1 import trainers_pb2, trainers_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class TrainerRegistryServicer(trainers_pb2_grpc.TrainerRegistryServiceServicer):
    """Who can train."""

    def __init__(self, trainers: Trainers) -> None:
        self._trainers = trainers

    async def RegisterTrainer(
        self, request: trainers_pb2.RegisterTrainerRequest, _context: Context
    ) -> trainers_pb2.RegisterTrainerResponse:
        await self._trainers.register(request)
        return trainers_pb2.RegisterTrainerResponse(lease_seconds=self._trainers.lease_seconds)

    async def ListTrainers(
        self, _request: trainers_pb2.ListTrainersRequest, _context: Context
    ) -> trainers_pb2.ListTrainersResponse:
        return trainers_pb2.ListTrainersResponse(trainers=await self._trainers.list())

    async def DrainTrainer(
        self, request: trainers_pb2.DrainTrainerRequest, _context: Context
    ) -> trainers_pb2.Trainer:
        return await self._trainers.drain(request.trainer_id, request.undo)
