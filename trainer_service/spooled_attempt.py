"""An attempt that was stopped while the store was away: its newest state is brought there now."""

from __future__ import annotations

import asyncio
import time

import structlog

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import CommittedCheckpoint
from everstep.errors import EverstepError, Reason
from everstep.training.v1 import progress_pb2
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.progress_pb2 import TrainingProgress
from trainer_service.child.pipe import Finished
from trainer_service.last_words import failed, last_word, replaced_word
from trainer_service.progress import AttemptProgress
from trainer_service.spool import Spool, SpooledSnapshot
from trainer_service.store_patience import Pauses
from trainer_service.uploader import checkpoint_message, commit_snapshot, committed_event

_log = structlog.get_logger(__name__)


class SpooledAttempt:
    """Stores a spooled snapshot, however long the store is away, and says the last word.

    It takes the same calls as a TrainingWorker, for a caller knows no difference.
    """

    def __init__(
        self, spooled: SpooledSnapshot, progress: AttemptProgress, store: BlobStore, spool: Spool
    ) -> None:
        self._spooled = spooled
        self._progress = progress
        self._store = store
        self._spool = spool
        self._cancelled = False
        self._replaced_by: int | None = None
        #: Set when it is not to be stored, by this process.
        self._given_up = asyncio.Event()
        self._stopping = False

    async def run(self) -> None:
        """Stores the snapshot and publishes the attempt's last word, unless told to stop."""
        checkpoint, error = None, None
        try:
            checkpoint = await self._store_it()
        except EverstepError as fault:
            error = fault
        except Exception as fault:
            _log.exception("the spooled snapshot cannot be read")
            error = EverstepError(
                Reason.TRAINER_RESTARTED,
                f"the trainer was restarted, and what it kept on disk cannot be read ({fault}); "
                "resume from the newest checkpoint",
            )
        if self._stopping and checkpoint is None:
            return
        await self._progress.publish(self._last_word(checkpoint, error))
        context = self._spooled.context
        await asyncio.to_thread(self._spool.remove, context.operation_id, context.attempt)

    async def cancel(self, discard: bool) -> None:
        """The attempt is to end as cancelled; discarded, without this checkpoint."""
        self._cancelled = True
        if discard:
            self._given_up.set()

    async def shutdown(self) -> None:
        """Leaves the snapshot on disk for the next start."""
        self._stopping = True
        self._given_up.set()

    async def take_checkpoint(self) -> None:
        """Nothing: one is on its way."""

    async def replace(self, attempt: int) -> None:
        """Gives up: a newer attempt has begun."""
        self._replaced_by = attempt
        self._given_up.set()

    async def _store_it(self) -> Checkpoint | None:
        began, pauses = time.monotonic(), Pauses()
        giving_up = asyncio.create_task(self._given_up.wait())
        try:
            while not self._given_up.is_set():
                storing = asyncio.create_task(asyncio.to_thread(self._commit))
                await asyncio.wait([storing, giving_up], return_when=asyncio.FIRST_COMPLETED)
                if not storing.done():
                    break
                try:
                    checkpoint = checkpoint_message(storing.result())
                except EverstepError as error:
                    _log.warning("the spooled snapshot is not stored yet", error=error.message)
                    if error.reason is Reason.CHECKPOINT_CORRUPT:
                        raise
                    # Whatever is wrong with the store can be mended; what is on disk stays there.
                    await asyncio.wait([giving_up], timeout=pauses.next())
                    continue
                stall = self._spooled.snapshot.stall_seconds
                seconds = time.monotonic() - began
                await self._progress.publish(committed_event(checkpoint, stall, seconds))
                return checkpoint
        finally:
            giving_up.cancel()
        return None

    def _commit(self) -> CommittedCheckpoint:
        context = self._spooled.context
        with self._spool.tensors(context.operation_id, context.attempt) as memory:
            return commit_snapshot(self._store, context, self._spooled.snapshot, memory)

    def _last_word(
        self, checkpoint: Checkpoint | None, error: EverstepError | None
    ) -> TrainingProgress:
        if self._replaced_by is not None:
            return replaced_word(self._replaced_by)
        outcome = self._spooled.outcome
        if self._cancelled and not (isinstance(outcome, Finished) and checkpoint is not None):
            return TrainingProgress(cancelled=progress_pb2.Cancelled(checkpoint=checkpoint))
        if error is not None:
            return failed(error, checkpoint)
        if outcome is None:
            restarted = EverstepError(
                Reason.TRAINER_RESTARTED,
                "the trainer was restarted; resume from the newest checkpoint",
            )
            return failed(restarted, checkpoint)
        return last_word(outcome, checkpoint, None, self._progress.position)
