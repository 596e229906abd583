"""OperationService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import grpc

from control_plane.checkpoints import Checkpoints
from control_plane.dispatcher import Dispatcher
from control_plane.event_log import EventLog
from control_plane.limits import WatchLimit
from control_plane.operations import Operations
from everstep.control.v1 import operations_pb2, operations_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class OperationServicer(operations_pb2_grpc.OperationServiceServicer):
    """The memory of trainings."""

    def __init__(
        self,
        operations: Operations,
        log: EventLog,
        dispatcher: Dispatcher,
        checkpoints: Checkpoints,
        watches: WatchLimit,
    ) -> None:
        self._operations = operations
        self._log = log
        self._dispatcher = dispatcher
        self._checkpoints = checkpoints
        self._watches = watches

    async def CreateOperation(
        self, request: operations_pb2.CreateOperationRequest, _context: Context
    ) -> operations_pb2.Operation:
        return await self._operations.create(request)

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, _context: Context
    ) -> operations_pb2.Operation:
        return await self._operations.get(request.operation_id)

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, _context: Context
    ) -> operations_pb2.ListOperationsResponse:
        return await self._operations.list(request)

    async def UpdateOperation(
        self, request: operations_pb2.UpdateOperationRequest, _context: Context
    ) -> operations_pb2.Operation:
        return await self._operations.update(request)

    def WatchOperation(
        self, request: operations_pb2.WatchOperationRequest, _context: Context
    ) -> AsyncIterator[operations_pb2.WatchOperationResponse]:
        watched = self._log.watch(request.operation_id, request.after_sequence)
        # The interceptor sends bytes as they are; the stub's type knows messages alone.
        return cast(
            AsyncIterator[operations_pb2.WatchOperationResponse], self._watches.limited(watched)
        )

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, _context: Context
    ) -> operations_pb2.Operation:
        return await self._operations.cancel(request.operation_id, request.discard)

    async def ResumeOperation(
        self, request: operations_pb2.ResumeOperationRequest, _context: Context
    ) -> operations_pb2.Operation:
        return await self._operations.resume(request)

    async def CheckpointOperation(
        self, request: operations_pb2.CheckpointOperationRequest, _context: Context
    ) -> operations_pb2.CheckpointOperationResponse:
        attempt = await self._operations.open_attempt(request.operation_id)
        await self._dispatcher.take_checkpoint(attempt)
        return operations_pb2.CheckpointOperationResponse()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, _context: Context
    ) -> operations_pb2.DeleteOperationResponse:
        await self._operations.delete(request.operation_id)
        await self._checkpoints.finish_removals()
        return operations_pb2.DeleteOperationResponse()
