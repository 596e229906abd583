"""Everstep's side in the trainer: the product's slots, orchestrator and uploader."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from checkpoint_store.blobs import BlobStore
from everstep.training.v1.progress_pb2 import TrainingProgress
from trainer_service.child.pipe import Failed, SlotsWanted, SnapshotTaken, Train
from trainer_service.child_process import ChildProcess, SpareChildren
from trainer_service.journal import Journal
from trainer_service.local_orchestrator import LocalTrainingOrchestrator
from trainer_service.progress import AttemptProgress
from trainer_service.settings import TrainerSettings
from trainer_service.slots import MemorySlots
from trainer_service.uploader import UploadContext, Uploader

OPERATION: Final = "op-bench"


class JobProcesses(SpareChildren):
    """Training processes that run the benchmark's job."""

    newest: ChildProcess

    async def take(self) -> ChildProcess:
        self.newest = await ChildProcess.start("benchmarks.checkpoint.everstep_child")
        return self.newest


async def train(store: BlobStore, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Runs a job to its end.

    Returns:
        What its process saw, and of each checkpoint the bytes uploaded and the time it was durable.
    """
    with _attempt() as (slots, progress, journal):
        orchestrator = LocalTrainingOrchestrator(
            JobProcesses(0), slots, progress, TrainerSettings(max_local_restarts=0)
        )
        uploader = Uploader(
            store,
            slots,
            progress,
            UploadContext(OPERATION, 1, {}, "0" * 64, None),
            orchestrator.release,
            lambda: orchestrator.newer_waits,
        )
        outcome = await orchestrator.run(
            Train(OPERATION, 1, job, {}, "", threads, ()), uploader.submit, _prepare(slots)
        )
        await uploader.drain(patience_seconds=60)
        await uploader.close()
        if isinstance(outcome, Failed) or uploader.error is not None:
            raise RuntimeError(f"Everstep's own run failed: {outcome}, {uploader.error}")
        events = [
            TrainingProgress.FromString(payload)
            for _, payload in journal.read(OPERATION, 1, 0, 10_000, 64 << 20)
        ]
    committed = [event for event in events if event.HasField("checkpoint_committed")]
    return outcome.result | {
        "bytes": [e.checkpoint_committed.checkpoint.uploaded_bytes for e in committed],
        "durable_at": [e.time.ToNanoseconds() / 1e9 for e in committed],
    }


async def recover(job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Kills a job's process after its first snapshot; there is no store that it could ask.

    Returns:
        When it was killed, and the moments of the process that went on, by time.time().
    """
    children = JobProcesses(0)
    killed_at = 0.0

    def kill(_snapshot: SnapshotTaken) -> None:
        nonlocal killed_at
        if not killed_at:
            killed_at = time.time()
            os.kill(children.newest.process_id, signal.SIGKILL)

    with _attempt() as (slots, progress, _journal):
        orchestrator = LocalTrainingOrchestrator(
            children, slots, progress, TrainerSettings(restart_backoff_seconds=0)
        )
        word = Train(OPERATION, 1, job, {}, "", threads, ())
        outcome = await orchestrator.run(word, kill, _prepare(slots))
    if isinstance(outcome, Failed) or not killed_at:
        raise RuntimeError(f"Everstep's own run failed: {outcome}")
    return outcome.result | {"killed": killed_at}


@contextmanager
def _attempt() -> Iterator[tuple[MemorySlots, AttemptProgress, Journal]]:
    slots = MemorySlots()
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.db")
        journal.open_attempt(OPERATION, 1)
        yield slots, AttemptProgress(journal, OPERATION, 1), journal
        journal.close()
    slots.close()


def _prepare(slots: MemorySlots) -> Callable[[SlotsWanted], Awaitable[None]]:
    async def prepare(wanted: SlotsWanted) -> None:
        await asyncio.to_thread(slots.reserve, wanted.length)

    return prepare
