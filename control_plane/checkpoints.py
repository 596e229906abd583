"""The registry of checkpoints: listed, pinned, removed, offered for download."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Connection

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.manifest import Manifest
from control_plane import pages, times
from control_plane.beginnings import newest_to_try
from control_plane.checkpoint_records import checkpoint_message, known_checkpoint, superfluous
from control_plane.database import attempts, checkpoints, operations
from control_plane.database.checkpoints import CheckpointRecord
from control_plane.database.operations import OperationRecord
from control_plane.database.session import Database
from control_plane.states import ATTEMPT_STATES, State
from everstep.control.v1 import checkpoints_pb2
from everstep.control.v1.checkpoints_pb2 import BlobDownload, CheckpointPart
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint, CheckpointReference
from everstep.training.v1.strategy_pb2 import TrainingStrategy

_log = structlog.get_logger(__name__)

#: How long a download URL serves.
DOWNLOAD_TIME: Final = timedelta(hours=1)
_KIND_OF_PART: Final = {
    CheckpointPart.CHECKPOINT_PART_WEIGHTS: "weights",
    CheckpointPart.CHECKPOINT_PART_BEST_WEIGHTS: "best_weights",
    CheckpointPart.CHECKPOINT_PART_OPTIMIZER: "optimizer",
    CheckpointPart.CHECKPOINT_PART_AVERAGE_WEIGHTS: "average_weights",
    CheckpointPart.CHECKPOINT_PART_TRACE: "trace",
}
_UNFINISHED: Final = tuple(state.value for state in (*ATTEMPT_STATES, State.PENDING))
#: Keys of the store that are removed between two updates of the database.
_REMOVED_AT_A_TIME: Final = 100


class Checkpoints:
    """What callers ask of checkpoints.

    Args:
        database: Where they are listed.
        store: Where they are.
        public_store: The same store, under the address that callers reach it at.
    """

    def __init__(self, database: Database, store: BlobStore, public_store: BlobStore) -> None:
        self._database = database
        self._store = store
        self._public_store = public_store
        self._removing = asyncio.Lock()

    async def list(
        self, request: checkpoints_pb2.ListCheckpointsRequest
    ) -> checkpoints_pb2.ListCheckpointsResponse:
        """Checkpoints newest first, in pages.

        Raises:
            EverstepError: INVALID_REQUEST for a page token that is none.
        """
        return await self._database.read(_list, request, pages.decode_token(request.page_token))

    async def get(self, checkpoint_id: str) -> Checkpoint:
        """One checkpoint.

        Raises:
            EverstepError: CHECKPOINT_NOT_FOUND.
        """
        return checkpoint_message(await self._database.read(known_checkpoint, checkpoint_id))

    async def pin(self, checkpoint_id: str, pinned: bool) -> Checkpoint:
        """Keeps a checkpoint until it is unpinned.

        Raises:
            EverstepError: CHECKPOINT_NOT_FOUND.
        """
        return await self._database.write(_pin, checkpoint_id, pinned)

    async def delete(self, checkpoint_id: str) -> None:
        """Removes a checkpoint; its blobs go when garbage is collected.

        Raises:
            EverstepError: CHECKPOINT_NOT_FOUND, CHECKPOINT_PINNED, CHECKPOINT_IN_USE.
        """
        await self._database.write(_delete, checkpoint_id)
        await self.finish_removals()

    async def apply_retention(self, operation_id: str) -> None:
        """Removes what an operation's policy does not keep."""
        if await self._database.write(_retain, operation_id):
            await self.finish_removals()

    async def finish_removals(self) -> None:
        """Removes from the store what has no rows any more.

        What cannot be removed now stays planned, for the next time.
        """
        async with self._removing:
            keys = await self._database.read(checkpoints.planned_removals)
            try:
                for start in range(0, len(keys), _REMOVED_AT_A_TIME):
                    some = keys[start : start + _REMOVED_AT_A_TIME]
                    await asyncio.to_thread(_remove, self._store, some)
                    await self._database.write(checkpoints.removal_done, some)
            except EverstepError as error:
                _log.warning("manifests not removed yet", reason=error.reason, error=error.message)

    async def download_urls(
        self, checkpoint_id: str, part: CheckpointPart.ValueType
    ) -> Sequence[BlobDownload]:
        """URLs of the files that hold a part of a checkpoint.

        Raises:
            EverstepError: CHECKPOINT_NOT_FOUND, PART_MISSING.
        """
        record = await self._database.read(known_checkpoint, checkpoint_id)
        manifest = await asyncio.to_thread(self._manifest, record)
        if part == CheckpointPart.CHECKPOINT_PART_MANIFEST:
            return [await asyncio.to_thread(self._sign_manifest, manifest)]
        kind = _KIND_OF_PART[part]
        blobs = [blob for blob in manifest.blobs if blob.kind == kind]
        if not blobs:
            raise EverstepError(
                Reason.PART_MISSING,
                f"checkpoint {checkpoint_id} has no {kind.replace('_', ' ')}; ask for the weights, "
                "or for a checkpoint after the first evaluation",
            )

        def sign() -> list[BlobDownload]:
            return [
                BlobDownload(
                    url=self._public_store.download_url(blob_key(blob.digest), DOWNLOAD_TIME),
                    bytes=blob.length,
                    digest=blob.digest,
                )
                for blob in blobs
            ]

        return await asyncio.to_thread(sign)

    def _sign_manifest(self, manifest: Manifest) -> BlobDownload:
        content = manifest.to_bytes()
        return BlobDownload(
            url=self._public_store.download_url(manifest.key, DOWNLOAD_TIME),
            bytes=len(content),
            digest=blob_digest(content),
        )

    def _manifest(self, record: CheckpointRecord) -> Manifest:
        return read_manifest(self._store, record.manifest_key, record.manifest_digest)


def _list(
    connection: Connection,
    request: checkpoints_pb2.ListCheckpointsRequest,
    before: tuple[int, str] | None,
) -> checkpoints_pb2.ListCheckpointsResponse:
    size = pages.page_size(request.page_size)
    records = checkpoints.page(connection, request.operation_id, before, size + 1)
    shown = records[:size]
    response = checkpoints_pb2.ListCheckpointsResponse(
        checkpoints=[checkpoint_message(record) for record in shown]
    )
    if len(records) > size:
        last = shown[-1]
        response.next_page_token = pages.encode_token(last.create_time, last.checkpoint_id)
    return response


def _pin(connection: Connection, checkpoint_id: str, pinned: bool) -> Checkpoint:
    known_checkpoint(connection, checkpoint_id)
    checkpoints.set_values(connection, checkpoint_id, pinned=pinned)
    return checkpoint_message(known_checkpoint(connection, checkpoint_id))


def _delete(connection: Connection, checkpoint_id: str) -> None:
    record = known_checkpoint(connection, checkpoint_id)
    operation = operations.lock(connection, record.operation_id)
    record = known_checkpoint(connection, checkpoint_id)
    if record.pinned:
        raise EverstepError(
            Reason.CHECKPOINT_PINNED,
            f"checkpoint {checkpoint_id} is pinned; unpin it, then delete it",
        )
    if operation is not None and checkpoint_id in _protected(connection, operation):
        raise EverstepError(
            Reason.CHECKPOINT_IN_USE,
            f"an operation that runs needs checkpoint {checkpoint_id}; delete it when that one has "
            "finished, or cancel it first",
        )
    checkpoints.remove(connection, [checkpoint_id], times.now())


def _retain(connection: Connection, operation_id: str) -> bool:
    operation = operations.lock(connection, operation_id)
    if operation is None:
        return False
    policy = TrainingStrategy.FromString(operation.strategy).checkpoint
    removable = superfluous(
        checkpoints.of_operation(connection, operation_id),
        policy,
        _protected(connection, operation),
    )
    ids = [record.checkpoint_id for record in removable]
    if ids:
        checkpoints.remove(connection, ids, times.now())
    return bool(ids)


def _protected(connection: Connection, operation: OperationRecord) -> frozenset[str]:
    """The checkpoints that an unfinished operation may still begin with."""
    needed: set[str] = set()
    if operation.state in _UNFINISHED:
        newest = newest_to_try(connection, operation.operation_id)
        needed.add("" if newest is None else newest.checkpoint_id)
        needed.add(operation.resume_checkpoint_id or "")
        attempt = attempts.find(connection, operation.operation_id, operation.attempt)
        if attempt is not None and attempt.checkpoint is not None and not attempt.ending:
            needed.add(CheckpointReference.FromString(attempt.checkpoint).checkpoint_id)
    for fork in operations.forks_in_states(connection, operation.operation_id, _UNFINISHED):
        needed.add(CheckpointReference.FromString(fork.from_checkpoint or b"").checkpoint_id)
    return frozenset(needed)


def _remove(store: BlobStore, keys: list[str]) -> None:
    for key in keys:
        if not key.endswith("/"):
            store.delete(key)
            continue
        for info in list(store.list(key)):
            store.delete(info.key)
