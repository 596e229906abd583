"""The attempts of this trainer: begun, joined, replaced, stopped, forgotten."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from checkpoint_store.blobs import BlobStore
from everstep.errors import EverstepError, Reason
from everstep.trainer.v1.trainer_pb2 import Training
from everstep.training.v1.progress_pb2 import TrainingPosition, TrainingProgress
from trainer_service.child_process import SpareChildren
from trainer_service.journal import Journal, JournalAttempt
from trainer_service.last_words import failed
from trainer_service.progress import AttemptProgress
from trainer_service.settings import TrainerSettings
from trainer_service.spool import Spool
from trainer_service.spooled_attempt import SpooledAttempt
from trainer_service.training_worker import TrainingRequest, TrainingWorker
from trainer_service.work_at_risk import RiskMeter

_log = structlog.get_logger(__name__)

DAY_SECONDS: Final = 24 * 60 * 60


@dataclass(frozen=True)
class RunningTraining:
    """An attempt at work."""

    attempt: int
    worker: TrainingWorker | SpooledAttempt
    task: asyncio.Task[None]


class Trainings:
    """Which attempts there are on this trainer, running or finished and not yet forgotten."""

    def __init__(
        self,
        settings: TrainerSettings,
        store: BlobStore,
        journal: Journal,
        spares: SpareChildren,
        spool: Spool,
    ) -> None:
        self._settings = settings
        self._store = store
        self._journal = journal
        self._spares = spares
        self._spool = spool
        self._attempts: dict[tuple[str, int], AttemptProgress] = {}
        self._started: dict[tuple[str, int], float] = {}
        #: The newest attempt of each operation, forgotten ones too.
        self._newest: dict[str, int] = {}
        self._running: dict[str, RunningTraining] = {}
        self._beginning = asyncio.Lock()
        self.draining = False
        self._journal_full = False

    async def recover(self) -> None:
        """Takes up the journal: what ran when the trainer died is closed, for others to resume."""
        await asyncio.to_thread(self._journal.prune, self._settings.journal_days * DAY_SECONDS)
        for row in await asyncio.to_thread(self._journal.attempts):
            key = (row.operation_id, row.attempt)
            self._newest[row.operation_id] = max(row.attempt, self._newest.get(row.operation_id, 0))
            if row.forgotten:
                continue
            progress = AttemptProgress(
                self._journal,
                *key,
                last_index=row.last_index,
                finished=row.finished,
                position=await asyncio.to_thread(self._last_position, row),
            )
            self._attempts[key] = progress
            self._started[key] = row.start_time
            if not row.finished:
                await self._take_up(progress)
        unfinished = {key for key, progress in self._attempts.items() if not progress.finished}
        await asyncio.to_thread(self._spool.keep_only, unfinished)

    async def begin(self, request: TrainingRequest) -> AttemptProgress:
        """Begins an attempt, or joins it when it is known already.

        Raises:
            EverstepError: ATTEMPT_REPLACED, NO_CAPACITY, DRAINING.
        """
        if not request.operation_id:
            request = replace(request, operation_id=f"op-{secrets.token_hex(6)}")
        operation_id, attempt = request.operation_id, request.attempt
        async with self._beginning:
            known = self._attempts.get((operation_id, attempt))
            if known is not None:
                return known
            self._refuse_stale(operation_id, attempt)
            if self.draining:
                raise EverstepError(Reason.DRAINING, "the trainer stops; ask another one")
            await self._replace_lower(operation_id, attempt)
            if len(self._running) >= self._settings.capacity:
                raise EverstepError(
                    Reason.NO_CAPACITY,
                    f"the trainer runs {len(self._running)} of {self._settings.capacity} "
                    "trainings; wait, ask another trainer, or raise EVERSTEP_CAPACITY",
                )
            return await self._start(request)

    def find(self, operation_id: str, attempt: int) -> AttemptProgress:
        """The events of an attempt.

        Raises:
            EverstepError: TRAINING_NOT_FOUND.
        """
        progress = self._attempts.get((operation_id, attempt))
        if progress is None:
            raise EverstepError(
                Reason.TRAINING_NOT_FOUND,
                f"this trainer has no attempt {attempt} of operation {operation_id}; "
                "ListTrainings names those it has",
            )
        return progress

    async def cancel(self, operation_id: str, attempt: int, discard: bool) -> None:
        """Asks an attempt to stop; one that has finished is left as it is."""
        worker = self._worker(operation_id, attempt)
        if worker is not None:
            await worker.cancel(discard)

    async def hand_over(self, operation_id: str, attempt: int) -> None:
        """Asks an attempt to stop for another trainer to go on; one that has finished is left.

        One that is only stored yet, after a restart of this trainer, ends by itself.
        """
        worker = self._worker(operation_id, attempt)
        if isinstance(worker, TrainingWorker):
            await worker.shutdown()

    async def take_checkpoint(self, operation_id: str, attempt: int) -> None:
        """Asks an attempt for a checkpoint.

        Raises:
            EverstepError: NOT_RUNNING when it has finished.
        """
        worker = self._worker(operation_id, attempt)
        if worker is None:
            raise EverstepError(
                Reason.NOT_RUNNING, f"attempt {attempt} of {operation_id} has finished"
            )
        await worker.take_checkpoint()

    async def forget(self, operation_id: str, attempt: int) -> None:
        """Drops a finished attempt's events; one that is unknown is fine.

        Raises:
            EverstepError: NOT_FINISHED while it runs.
        """
        progress = self._attempts.get((operation_id, attempt))
        if progress is None:
            return
        if not progress.finished:
            raise EverstepError(
                Reason.NOT_FINISHED, f"attempt {attempt} of {operation_id} runs; cancel it first"
            )
        await self._write_journal(self._journal.forget, operation_id, attempt)
        self._attempts.pop((operation_id, attempt), None)

    def list(self) -> list[Training]:
        """Every attempt that is not forgotten, newest first."""
        return [
            Training(
                operation_id=progress.operation_id,
                attempt=progress.attempt,
                finished=progress.finished,
                last_index=progress.last_index,
                position=progress.position,
                phase=progress.phase.phase,
                process_id=0 if progress.finished else progress.phase.process_id,
                start_time=_timestamp(self._started[key]),
            )
            for key, progress in sorted(
                self._attempts.items(), key=lambda item: self._started[item[0]], reverse=True
            )
        ]

    async def drain(self) -> None:
        """Stops every training with a checkpoint; after the grace it is left on disk."""
        self.draining = True
        running = list(self._running.values())
        for training in running:
            await training.worker.shutdown()
        tasks = [training.task for training in running]
        late: set[asyncio.Task[None]] = set()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.stop_grace_seconds)
        # Of those that are late, and what earlier ones abandoned.
        self._store.give_up()
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _worker(self, operation_id: str, attempt: int) -> TrainingWorker | SpooledAttempt | None:
        self.find(operation_id, attempt)
        running = self._running.get(operation_id)
        return running.worker if running is not None and running.attempt == attempt else None

    def _refuse_stale(self, operation_id: str, attempt: int) -> None:
        newest = self._newest.get(operation_id, 0)
        if attempt <= newest:
            raise EverstepError(
                Reason.ATTEMPT_REPLACED,
                f"operation {operation_id} is at attempt {newest} here; attempt {attempt} is over",
            )

    async def _replace_lower(self, operation_id: str, attempt: int) -> None:
        running = self._running.get(operation_id)
        if running is not None:
            await running.worker.replace(attempt)
            await asyncio.wait([running.task])

    async def _start(self, request: TrainingRequest) -> AttemptProgress:
        key = (request.operation_id, request.attempt)
        await self._write_journal(self._journal.open_attempt, *key)
        progress = AttemptProgress(self._journal, *key, risk=RiskMeter(request.strategy.checkpoint))
        worker = TrainingWorker(
            request, progress, self._store, self._spares, self._spool, self._settings
        )
        self._attempts[key] = progress
        now = Timestamp()
        now.GetCurrentTime()
        self._started[key] = now.ToNanoseconds() / 1e9
        self._newest[request.operation_id] = request.attempt
        self._run(request.operation_id, request.attempt, worker)
        return progress

    async def _write_journal(
        self, write: Callable[[str, int], None], operation_id: str, attempt: int
    ) -> None:
        try:
            await asyncio.to_thread(write, operation_id, attempt)
        except sqlite3.OperationalError as error:
            self._journal_full = True
            raise EverstepError(
                Reason.NO_CAPACITY,
                f"the trainer's journal cannot be written ({error}); make room on the disk of its "
                "EVERSTEP_STATE_DIR, or ask another trainer",
            ) from None

    async def takes_work(self) -> bool:
        """Whether a new attempt may be begun; where the journal was full, it is tried again."""
        if self._journal_full:
            try:
                await asyncio.to_thread(self._journal.check)
                self._journal_full = False
            except sqlite3.OperationalError:
                pass
        return not self.draining and not self._journal_full

    def _last_position(self, row: JournalAttempt) -> TrainingPosition:
        """How far an attempt was when it last said so."""
        last = self._journal.read(row.operation_id, row.attempt, row.last_index - 1, 1, 0)
        return TrainingProgress.FromString(last[0][1]).position if last else TrainingPosition()

    async def _take_up(self, progress: AttemptProgress) -> None:
        """An attempt that ran when the trainer stopped: what it left on disk is stored now."""
        spooled = await asyncio.to_thread(self._spool.find, progress.operation_id, progress.attempt)
        if spooled is not None:
            attempt = SpooledAttempt(spooled, progress, self._store, self._spool)
            self._run(progress.operation_id, progress.attempt, attempt)
            return
        restarted = EverstepError(
            Reason.TRAINER_RESTARTED,
            "the trainer was restarted; resume from the newest checkpoint",
        )
        await progress.publish(failed(restarted))

    def _run(
        self, operation_id: str, attempt: int, worker: TrainingWorker | SpooledAttempt
    ) -> None:
        task = asyncio.create_task(self._run_to_its_end(operation_id, worker))
        self._running[operation_id] = RunningTraining(attempt, worker, task)

    async def _run_to_its_end(
        self, operation_id: str, worker: TrainingWorker | SpooledAttempt
    ) -> None:
        try:
            await worker.run()
        finally:
            self._running.pop(operation_id, None)


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(seconds * 1e9))
    return timestamp
