"""From slot to store: one checkpoint at a time, without a copy of the whole."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from checkpoint_store import lineage
from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import CheckpointDraft, CommittedCheckpoint, commit_checkpoint
from checkpoint_store.lineage import lineage_summary
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import (
    Checkpoint,
    CheckpointReference,
    CheckpointTrigger,
    LineageEvent,
    LineageKind,
)
from everstep.training.v1.progress_pb2 import (
    CheckpointCommitted,
    CheckpointDelayed,
    Phase,
    TrainingProgress,
)
from trainer_service.child.pipe import SnapshotTaken
from trainer_service.phase_progress import PhaseBytes
from trainer_service.progress import AttemptProgress
from trainer_service.slots import MemorySlots
from trainer_service.store_patience import STORE_TROUBLE, Pauses, first_kept

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class UploadContext:
    """What a checkpoint says of the training that it belongs to."""

    operation_id: str
    attempt: int
    strategy: dict[str, Any]
    strategy_digest: str
    #: The manifest before: of this attempt, or the one that it went on from.
    parent: str | None


class Uploader:
    """Makes checkpoints of snapshots, in the order they were taken.

    Args:
        released: Called when a snapshot's slot is read no more.
        newer_waits: Whether a newer snapshot would take this one's place.
    """

    def __init__(
        self,
        store: BlobStore,
        slots: MemorySlots,
        progress: AttemptProgress,
        context: UploadContext,
        released: Callable[[int], Awaitable[None]],
        newer_waits: Callable[[], bool],
    ) -> None:
        self._store = store
        self._slots = slots
        self._progress = progress
        #: Of the next checkpoint.
        self.context = context
        self._released = released
        self._newer_waits = newer_waits
        self._pauses = Pauses()
        #: When no upload is tried any more, on the monotonic clock; None: training goes on.
        self._deadline: float | None = None
        self._draining = asyncio.Event()
        self._uploads: asyncio.Queue[SnapshotTaken] = asyncio.Queue()
        self._runner: asyncio.Task[None] | None = None
        #: The newest checkpoint of this attempt, and the snapshot that it was made of.
        self.committed: Checkpoint | None = None
        self.stored: SnapshotTaken | None = None
        #: Why the newest snapshot is not stored: the first error since the last one that is.
        self.error: EverstepError | None = None

    def submit(self, snapshot: SnapshotTaken) -> None:
        """Takes a snapshot; training goes on meanwhile."""
        self._uploads.put_nowait(snapshot)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())

    async def drain(self, patience_seconds: float) -> None:
        """Waits until every snapshot taken so far is stored or given up.

        Args:
            patience_seconds: How long an upload that fails is tried again.
        """
        self._deadline = time.monotonic() + patience_seconds
        self._pauses = Pauses()
        self._draining.set()
        await self._uploads.join()

    async def close(self) -> None:
        """Gives up what is not stored yet."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            snapshot = await self._uploads.get()
            self._progress.risk.upload_begun(snapshot)
            try:
                await self._upload(snapshot)
            except EverstepError as error:
                self.error = first_kept(self.error, error)
            except Exception as error:
                _log.exception("upload failed", operation_id=self.context.operation_id)
                self.error = EverstepError(Reason.INTERNAL, f"the upload failed: {error}")
            finally:
                self._progress.risk.upload_ended(committed=False)
                self._uploads.task_done()
            await self._released(snapshot.content.slot)

    async def _upload(self, snapshot: SnapshotTaken) -> None:
        """Stores one snapshot, if need be with many tries.

        Whatever is wrong with the store can be mended: it is tried until a newer snapshot waits
        or, when training has ended, until the deadline. The newer one, too, waits for the pause:
        a store that fails is not asked as often as training could.
        """
        began = time.monotonic()
        trouble: EverstepError | None = None
        while True:
            try:
                committed = await asyncio.to_thread(
                    self._commit, snapshot, PhaseBytes(self._progress, Phase.PHASE_FINISHING)
                )
            except EverstepError as error:
                if trouble is None or error.reason is not trouble.reason:
                    await self._delayed(snapshot, error)
                trouble, self.error = error, self.error or error
                if error.reason not in STORE_TROUBLE or (
                    self._draining.is_set() and self._is_outdated()
                ):
                    raise
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    raise
                await self._pause()
                if self._is_outdated():
                    raise
                continue
            self.error = None
            self._pauses = Pauses()
            self._progress.risk.upload_ended(committed=True)
            self.context = replace(self.context, parent=committed.manifest_key)
            self.committed, self.stored = checkpoint_message(committed), snapshot
            seconds = time.monotonic() - began
            await self._progress.publish(
                committed_event(self.committed, snapshot.stall_seconds, seconds)
            )
            return

    def _is_outdated(self) -> bool:
        """Whether a newer snapshot waits for the end of this one."""
        return self._newer_waits() or not self._uploads.empty()

    async def _pause(self) -> None:
        """Between two tries; the end of the training is no time to go on with a long one."""
        pause = self._pauses.next(self._deadline)
        if self._draining.is_set():
            await asyncio.sleep(pause)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._draining.wait()

    async def _delayed(self, snapshot: SnapshotTaken, error: EverstepError) -> None:
        _log.warning("checkpoint not stored", reason=error.reason, message=error.message)
        await self._progress.publish(
            TrainingProgress(
                checkpoint_delayed=CheckpointDelayed(
                    trigger=CheckpointTrigger.Value(f"CHECKPOINT_TRIGGER_{snapshot.trigger}"),
                    step=snapshot.step,
                    reason=error.reason.value,
                    message=error.message,
                )
            )
        )

    def _commit(self, snapshot: SnapshotTaken, brought: PhaseBytes) -> CommittedCheckpoint:
        total = sum(blob.length for blob in snapshot.content.blobs)
        with self._slots.view(snapshot.content.slot) as memory:
            return commit_snapshot(
                self._store,
                self.context,
                snapshot,
                memory,
                lambda count: brought.add_from_thread(count, total),
            )


def commit_snapshot(
    store: BlobStore,
    context: UploadContext,
    snapshot: SnapshotTaken,
    memory: memoryview,
    brought: Callable[[int], None] = lambda _bytes: None,
) -> CommittedCheckpoint:
    """Makes a checkpoint of a snapshot that stands in memory.

    Args:
        store: Where to.
        context: What it says of its training.
        snapshot: Of what.
        memory: Where its blobs stand.
        brought: Called with the bytes of each blob that is in the store, from any thread.

    Raises:
        EverstepError: As `commit_checkpoint`.
    """
    draft = CheckpointDraft(
        checkpoint_id=f"ck-{snapshot.step}-{secrets.token_hex(5)}",
        operation_id=context.operation_id,
        attempt=context.attempt,
        epoch=snapshot.epoch,
        step=snapshot.step,
        trigger=snapshot.trigger,
        create_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        parent=context.parent,
        blobs=tuple((blob.kind, blob.offset, blob.length) for blob in snapshot.content.blobs),
        state=snapshot.content.state,
        metrics=snapshot.metrics,
        monitor=snapshot.monitor,
        monitor_value=snapshot.monitor_value,
        strategy=context.strategy,
        strategy_digest=context.strategy_digest,
        data_digest=snapshot.data_digest,
        fingerprint=snapshot.fingerprint,
        lineage=tuple(lineage.LineageEvent.from_json(event) for event in snapshot.lineage),
    )
    return commit_checkpoint(store, draft, memory, brought=brought)


def committed_event(
    checkpoint: Checkpoint, stall_seconds: float, upload_seconds: float
) -> TrainingProgress:
    """CheckpointCommitted, with how long training waited and how long the way took."""
    return TrainingProgress(
        checkpoint_committed=CheckpointCommitted(
            checkpoint=checkpoint, stall_seconds=stall_seconds, upload_seconds=upload_seconds
        )
    )


def checkpoint_message(committed: CommittedCheckpoint) -> Checkpoint:
    """A committed checkpoint in the contract's words."""
    manifest = committed.manifest
    message = Checkpoint(
        reference=CheckpointReference(
            checkpoint_id=manifest.checkpoint_id,
            manifest_key=committed.manifest_key,
            manifest_digest=committed.manifest_digest,
        ),
        operation_id=manifest.operation_id,
        attempt=manifest.attempt,
        epoch=manifest.epoch,
        step=manifest.step,
        trigger=CheckpointTrigger.Value(f"CHECKPOINT_TRIGGER_{manifest.trigger}"),
        logical_bytes=manifest.logical_bytes,
        uploaded_bytes=committed.uploaded_bytes,
        digests=manifest.digests,
        metrics=manifest.metrics,
        monitor=manifest.monitor,
        lineage=lineage_summary(manifest.lineage),
        lineage_events=[
            LineageEvent(
                kind=LineageKind.Value(f"LINEAGE_KIND_{event.kind}"),
                step=event.step,
                message=event.message,
            )
            for event in manifest.lineage
        ],
    )
    message.create_time.FromJsonString(manifest.create_time)
    if manifest.monitor_value is not None:
        message.monitor_value = manifest.monitor_value
    return message
