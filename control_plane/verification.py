"""Checkpoints read again and compared with their digests: one, or all there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_key
from checkpoint_store.manifest_reading import corrupt_blob
from checkpoint_store.verification import blob_fault
from control_plane.caller import Caller
from control_plane.checkpoint_records import known_checkpoint
from control_plane.database import checkpoints
from control_plane.database.checkpoints import CheckpointRecord
from control_plane.database.session import Database
from everstep.control.v1.checkpoints_pb2 import VerifiedCheckpoint, VerifyCheckpointsResponse
from everstep.errors import EverstepError, Reason

#: However many ask: trainings need the store, too.
BLOBS_AT_A_TIME: Final = 2
#: The longest a caller hears nothing, in seconds.
WORD_SECONDS: Final = 1.0


@dataclass
class _Reading:
    """What one call has read so far; counted in the threads that read."""

    blobs: int = 0
    bytes: int = 0
    caller: Caller = field(default_factory=Caller)
    #: What is wrong with each blob that was read, by digest.
    faults: dict[str, str | None] = field(default_factory=dict)

    def count(self, read: int) -> None:
        self.caller.check()
        self.bytes += read


class Verification:
    """Finds damage in the store and marks the checkpoints that it is in."""

    def __init__(self, database: Database, store: BlobStore) -> None:
        self._database = database
        self._store = store
        self._reading_blobs = asyncio.Semaphore(BLOBS_AT_A_TIME)

    async def verify(self, checkpoint_id: str) -> tuple[int, int]:
        """Reads a checkpoint's blobs again: how many, and their bytes.

        Raises:
            EverstepError: CHECKPOINT_NOT_FOUND; CHECKPOINT_CORRUPT, which names the damaged blob
                and offers the operation's newest good checkpoint.
        """
        reading = _Reading()
        try:
            record = await self._database.read(known_checkpoint, checkpoint_id)
            try:
                return await self._verify(record, reading)
            except EverstepError as error:
                if error.reason is not Reason.CHECKPOINT_CORRUPT:
                    raise
                raise await self._with_offer(record, error, reading) from None
        finally:
            reading.caller.gone = True

    async def verify_all(
        self, operation_id: str
    ) -> AsyncGenerator[VerifyCheckpointsResponse, None]:
        """Reads checkpoints again, newest first, each blob once; of one operation or (empty) all.

        One that is deleted meanwhile is left out.

        Yields:
            Each checkpoint as it is done, and between them how far the reading is.
        """
        ids = await self._database.read(checkpoints.ids, operation_id)
        reading = _Reading()
        word = VerifyCheckpointsResponse(total_checkpoints=len(ids))
        yield word
        verifying: asyncio.Task[VerifiedCheckpoint | None] | None = None
        try:
            for checkpoint_id in ids:
                verifying = asyncio.create_task(self._verified(checkpoint_id, reading))
                while not (await asyncio.wait({verifying}, timeout=WORD_SECONDS))[0]:
                    word.blobs, word.bytes = reading.blobs, reading.bytes
                    yield word
                verified = verifying.result()
                word.done_checkpoints += 1
                word.damaged_checkpoints += verified is not None and verified.damaged
                word.blobs, word.bytes = reading.blobs, reading.bytes
                done = VerifyCheckpointsResponse(verified=verified)
                done.MergeFrom(word)
                yield done
        finally:
            # The thread ends with the piece that it reads.
            reading.caller.gone = True
            if verifying is not None:
                verifying.cancel()

    async def _verified(self, checkpoint_id: str, reading: _Reading) -> VerifiedCheckpoint | None:
        try:
            record = await self._database.read(known_checkpoint, checkpoint_id)
            verified = VerifiedCheckpoint(
                checkpoint_id=checkpoint_id, operation_id=record.operation_id, step=record.step
            )
            verified.blobs, verified.bytes = await self._verify(record, reading)
        except EverstepError as error:
            if error.reason is Reason.CHECKPOINT_NOT_FOUND:
                return None
            if error.reason is not Reason.CHECKPOINT_CORRUPT:
                raise
            verified.damaged = True
            verified.damaged_key = error.metadata.get("blob", record.manifest_key)
            verified.message = error.message
        return verified

    async def _verify(self, record: CheckpointRecord, reading: _Reading) -> tuple[int, int]:
        try:
            counted = await self._read(record, reading)
        except EverstepError as error:
            if error.reason not in (Reason.CHECKPOINT_NOT_FOUND, Reason.CHECKPOINT_CORRUPT):
                raise
            # One that was deleted while it was read is not damaged.
            await self._database.read(known_checkpoint, record.checkpoint_id)
            await self._database.write(_set_damaged, record.checkpoint_id, True)
            raise EverstepError(
                Reason.CHECKPOINT_CORRUPT, error.message, metadata=error.metadata
            ) from None
        if record.damaged:
            await self._database.write(_set_damaged, record.checkpoint_id, False)
        return counted

    async def _read(self, record: CheckpointRecord, reading: _Reading) -> tuple[int, int]:
        manifest = await asyncio.to_thread(
            read_manifest, self._store, record.manifest_key, record.manifest_digest
        )
        lengths = {blob.digest: blob.length for blob in manifest.blobs}
        for digest, length in lengths.items():
            if digest not in reading.faults:
                async with self._reading_blobs:
                    reading.faults[digest] = await asyncio.to_thread(
                        blob_fault, self._store, digest, length, reading.count
                    )
                reading.blobs += 1
            fault = reading.faults[digest]
            if fault is not None:
                raise corrupt_blob(manifest, blob_key(digest), fault)
        return len(lengths), sum(lengths.values())

    async def _with_offer(
        self, record: CheckpointRecord, error: EverstepError, reading: _Reading
    ) -> EverstepError:
        """The error, with the newest checkpoint of the operation that reads well."""
        for other in await self._database.read(checkpoints.of_operation, record.operation_id):
            if other.checkpoint_id == record.checkpoint_id:
                continue
            try:
                await self._verify(other, reading)
            except EverstepError as failure:
                if failure.reason not in (Reason.CHECKPOINT_NOT_FOUND, Reason.CHECKPOINT_CORRUPT):
                    raise
                continue
            return EverstepError(
                error.reason,
                f"{error.message}; the newest good one of {record.operation_id} is "
                f"{other.checkpoint_id}",
                metadata={**error.metadata, "newest_good_checkpoint_id": other.checkpoint_id},
            )
        return error


def _set_damaged(connection: Connection, checkpoint_id: str, damaged: bool) -> None:
    checkpoints.set_values(connection, checkpoint_id, damaged=damaged)
