"""A control plane and a trainer, as a client of theirs sees them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import grpc

from everstep.control.v1 import (
    checkpoints_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    trainers_pb2_grpc,
)
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    Operation,
    OperationEvent,
)
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.processes import ServiceProcess, wait_for

FINAL_STATES = {
    operations_pb2.OPERATION_STATE_COMPLETED,
    operations_pb2.OPERATION_STATE_FAILED,
    operations_pb2.OPERATION_STATE_CANCELLED,
}


class Stack:
    """A control plane and a trainer, and what a client needs to speak to them."""

    def __init__(
        self,
        control_plane: ServiceProcess,
        trainer: ServiceProcess,
        connect: Callable[[ServiceProcess], grpc.Channel],
    ) -> None:
        self.control_plane = control_plane
        self.trainer = trainer
        channel = connect(control_plane)
        self.operations = operations_pb2_grpc.OperationServiceStub(channel)
        self.checkpoints = checkpoints_pb2_grpc.CheckpointServiceStub(channel)
        self.trainers = trainers_pb2_grpc.TrainerRegistryServiceStub(channel)

    def create(self, strategy: TrainingStrategy, **options: Any) -> str:
        request = operations_pb2.CreateOperationRequest(
            request_id=str(uuid.uuid4()), strategy=strategy, **options
        )
        return self.operations.CreateOperation(request, timeout=30).operation_id

    def get(self, operation_id: str) -> Operation:
        return self.operations.GetOperation(
            operations_pb2.GetOperationRequest(operation_id=operation_id),
            timeout=30,
            wait_for_ready=True,
        )

    def watch(
        self,
        operation_id: str,
        wanted: Callable[[OperationEvent], bool] = lambda _event: False,
        after_sequence: int = 0,
    ) -> list[OperationEvent]:
        """Events up to the first that is wanted, or to the end of the operation."""
        stream = self.operations.WatchOperation(
            operations_pb2.WatchOperationRequest(
                operation_id=operation_id, after_sequence=after_sequence
            ),
            wait_for_ready=True,
        )
        events: list[OperationEvent] = []
        try:
            for response in stream:
                for event in response.batch.events:
                    events.append(event)
                    if wanted(event):
                        return events
        finally:
            stream.cancel()
        return events

    def finished(self, operation_id: str) -> Operation:
        def final() -> Operation | None:
            operation = self.get(operation_id)
            return operation if operation.state in FINAL_STATES else None

        return wait_for(final, f"{operation_id} to end")

    def train(self, strategy: TrainingStrategy) -> Operation:
        operation = self.finished(self.create(strategy))
        assert operation.state == OPERATION_STATE_COMPLETED, operation
        return operation
