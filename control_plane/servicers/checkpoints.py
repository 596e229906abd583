"""CheckpointService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from checkpoint_store.blobs import BlobStore
from control_plane.checkpoints import Checkpoints
from control_plane.database.session import Database
from control_plane.garbage import GarbageCollector
from control_plane.storage_usage import storage_usage
from control_plane.verification import Verification
from everstep.control.v1 import checkpoints_pb2, checkpoints_pb2_grpc
from everstep.training.v1.checkpoint_pb2 import Checkpoint

Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointServicer(checkpoints_pb2_grpc.CheckpointServiceServicer):
    """What is known of checkpoints."""

    def __init__(
        self,
        database: Database,
        store: BlobStore,
        sweeping_store: BlobStore,
        checkpoints: Checkpoints,
    ) -> None:
        self._database = database
        self._store = store
        self._checkpoints = checkpoints
        self._collector = GarbageCollector(database, sweeping_store, checkpoints)
        self._verification = Verification(database, store)

    async def ListCheckpoints(
        self, request: checkpoints_pb2.ListCheckpointsRequest, _context: Context
    ) -> checkpoints_pb2.ListCheckpointsResponse:
        return await self._checkpoints.list(request)

    async def GetCheckpoint(
        self, request: checkpoints_pb2.GetCheckpointRequest, _context: Context
    ) -> Checkpoint:
        return await self._checkpoints.get(request.checkpoint_id)

    async def UpdateCheckpoint(
        self, request: checkpoints_pb2.UpdateCheckpointRequest, _context: Context
    ) -> Checkpoint:
        if not request.HasField("pinned"):
            return await self._checkpoints.get(request.checkpoint_id)
        return await self._checkpoints.pin(request.checkpoint_id, request.pinned)

    async def DeleteCheckpoint(
        self, request: checkpoints_pb2.DeleteCheckpointRequest, _context: Context
    ) -> checkpoints_pb2.DeleteCheckpointResponse:
        await self._checkpoints.delete(request.checkpoint_id)
        return checkpoints_pb2.DeleteCheckpointResponse()

    async def VerifyCheckpoint(
        self, request: checkpoints_pb2.VerifyCheckpointRequest, _context: Context
    ) -> checkpoints_pb2.VerifyCheckpointResponse:
        blobs, size = await self._verification.verify(request.checkpoint_id)
        return checkpoints_pb2.VerifyCheckpointResponse(blobs=blobs, bytes=size)

    async def VerifyCheckpoints(
        self, request: checkpoints_pb2.VerifyCheckpointsRequest, _context: Context
    ) -> AsyncIterator[checkpoints_pb2.VerifyCheckpointsResponse]:
        async with aclosing(self._verification.verify_all(request.operation_id)) as responses:
            async for response in responses:
                yield response

    async def GetDownloadUrls(
        self, request: checkpoints_pb2.GetDownloadUrlsRequest, _context: Context
    ) -> checkpoints_pb2.GetDownloadUrlsResponse:
        blobs = await self._checkpoints.download_urls(request.checkpoint_id, request.part)
        return checkpoints_pb2.GetDownloadUrlsResponse(blobs=blobs)

    async def GetStorageUsage(
        self, _request: checkpoints_pb2.GetStorageUsageRequest, _context: Context
    ) -> checkpoints_pb2.GetStorageUsageResponse:
        usage = await storage_usage(self._database, self._store)
        return checkpoints_pb2.GetStorageUsageResponse(**vars(usage))

    async def CollectGarbage(
        self, request: checkpoints_pb2.CollectGarbageRequest, _context: Context
    ) -> checkpoints_pb2.CollectGarbageResponse:
        grace = request.grace.ToTimedelta() if request.HasField("grace") else None
        collection = await self._collector.collect(grace, request.dry_run)
        return checkpoints_pb2.CollectGarbageResponse(**vars(collection))
