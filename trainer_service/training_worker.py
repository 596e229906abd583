"""TrainingWorker: one attempt, from its request to its last word."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from google.protobuf import json_format

from checkpoint_store.blobs import BlobStore
from everstep.errors import EverstepError, Reason
from everstep.strategy import strategy_content, strategy_digest
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.progress_pb2 import (
    Phase,
    PhaseChanged,
    TrainingProgress,
)
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy
from trainer_service.child.pipe import Failed, Finished, SlotContent, SlotsWanted, Train
from trainer_service.child_process import SpareChildren
from trainer_service.last_words import failed, last_word, replaced_word
from trainer_service.local_orchestrator import LocalTrainingOrchestrator
from trainer_service.phase_progress import PhaseBytes
from trainer_service.preflight import SnapshotSize, check_room, try_store
from trainer_service.progress import AttemptProgress
from trainer_service.restorer import RestoredCheckpoint, check_strategy_digest, restore
from trainer_service.settings import TrainerSettings
from trainer_service.slots import MemorySlots
from trainer_service.spool import Spool, SpooledSnapshot, as_shutdown
from trainer_service.store_patience import STORE_TROUBLE, AttemptStopped, StorePatience
from trainer_service.uploader import UploadContext, Uploader

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TrainingRequest:
    """What StartTraining and ResumeTraining ask for."""

    operation_id: str
    attempt: int
    #: Resolved and valid.
    strategy: TrainingStrategy
    #: None: from the beginning.
    checkpoint: CheckpointReference | None
    overrides: StrategyOverrides
    #: Whether the checkpoint is another training's, made with another strategy perhaps.
    fork: bool = False


class TrainingWorker:
    """Runs one attempt and says how it went, in `progress`."""

    def __init__(
        self,
        request: TrainingRequest,
        progress: AttemptProgress,
        store: BlobStore,
        spares: SpareChildren,
        spool: Spool,
        settings: TrainerSettings,
    ) -> None:
        self._request = request
        self._progress = progress
        self._store = store
        self._settings = settings
        self._slots = MemorySlots()
        self._orchestrator = LocalTrainingOrchestrator(spares, self._slots, progress, settings)
        self._spool = spool
        self._uploader: Uploader | None = None
        self._outcome: Finished | Failed | None = None
        self._replaced_by: int | None = None
        #: Set when the attempt is to end.
        self._stopping = asyncio.Event()
        self._patience = StorePatience(progress, settings.store_patience_seconds, self._stopping)
        self._cancelled = False
        #: A store that never worked is told at once where nothing is lost by it.
        is_new = request.checkpoint is None
        self._waited_for = frozenset({Reason.STORE_UNAVAILABLE}) if is_new else STORE_TROUBLE

    async def run(self) -> None:
        """Trains; whatever happens, the attempt's last word is published.

        Cancelled, it says none: what is not stored yet is kept on disk, for the next start.
        """
        try:
            word = await self._train()
        except AttemptStopped:
            outcome = Finished("cancelled" if self._cancelled else "handed_over", {})
            word = last_word(outcome, None, None, self._progress.position)
        except EverstepError as error:
            word = failed(error)
        except Exception as error:
            _log.exception("attempt failed", operation_id=self._request.operation_id)
            word = failed(EverstepError(Reason.INTERNAL, f"the trainer failed: {error}"))
        except asyncio.CancelledError:
            await asyncio.to_thread(self._keep_on_disk)
            raise
        finally:
            self._slots.close()
        if self._replaced_by is not None:
            word = replaced_word(self._replaced_by)
        await self._progress.publish(word)

    async def cancel(self, discard: bool) -> None:
        """Stops after the current step, with a checkpoint unless discarded."""
        self._cancelled = True
        self._stopping.set()
        await self._orchestrator.cancel(discard)

    async def shutdown(self) -> None:
        """Stops after the current step, for another trainer to go on."""
        self._stopping.set()
        await self._orchestrator.shutdown()

    async def take_checkpoint(self) -> None:
        """A checkpoint after the current step."""
        await self._orchestrator.take_checkpoint()

    async def replace(self, attempt: int) -> None:
        """Stops at once: a newer attempt has begun."""
        self._replaced_by = attempt
        self._stopping.set()
        await self._orchestrator.cancel(discard=True)

    async def _train(self) -> TrainingProgress:
        await self._phase(Phase.PHASE_PREPARING)
        await self._patience.run(
            partial(try_store, self._store, self._request.operation_id, self._request.attempt),
            self._waited_for,
        )
        restored = await self._restore()
        self._uploader = uploader = Uploader(
            self._store,
            self._slots,
            self._progress,
            UploadContext(
                operation_id=self._request.operation_id,
                attempt=self._request.attempt,
                strategy=strategy_content(self._request.strategy),
                strategy_digest=strategy_digest(self._request.strategy),
                parent=None if restored is None else self._reference().manifest_key,
            ),
            self._orchestrator.release,
            lambda: self._orchestrator.newer_waits,
        )
        resume_context: SlotContent | None = None if restored is None else restored.content
        try:
            self._outcome = outcome = await self._orchestrator.run(
                self._train_word(restored),
                uploader.submit,
                self._prepare,
                resume_context=resume_context,
                digests=None if restored is None else restored.manifest.digests,
            )
            await self._drain(uploader)
        finally:
            await uploader.close()
        discarded = self._orchestrator.discarded.is_set() and isinstance(outcome, Finished)
        if discarded and uploader.stored is not self._orchestrator.newest_taken:
            # Its end is not in the store, and nobody waits for it: what is there is an earlier one.
            outcome = Finished("cancelled", {})
        return last_word(outcome, uploader.committed, uploader.error, self._progress.position)

    async def _drain(self, uploader: Uploader) -> None:
        """Waits until all is stored, unless it is not wanted any more."""
        if not self._orchestrator.discarded.is_set():
            await self._phase(Phase.PHASE_FINISHING)
        waits = [
            asyncio.create_task(uploader.drain(self._settings.store_patience_seconds)),
            asyncio.create_task(self._orchestrator.discarded.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _restore(self) -> RestoredCheckpoint | None:
        if self._request.checkpoint is None:
            return None
        await self._phase(Phase.PHASE_RESTORING)
        received = PhaseBytes(self._progress, Phase.PHASE_RESTORING)
        restored = await self._patience.run(
            partial(restore, self._store, self._reference(), self._slots, received.add_from_thread)
        )
        if not self._request.fork:
            check_strategy_digest(restored.manifest, strategy_digest(self._request.strategy))
        return restored

    def _keep_on_disk(self) -> None:
        """The newest snapshot, unless it is stored or not wanted."""
        snapshot, uploader = self._orchestrator.newest_taken, self._uploader
        if snapshot is None or uploader is None or self._orchestrator.discarded.is_set():
            return
        if uploader.stored is snapshot:
            return
        spooled = SpooledSnapshot(uploader.context, as_shutdown(snapshot), self._outcome)
        try:
            with self._slots.view(snapshot.content.slot) as memory:
                self._spool.write(spooled, memory)
        except OSError as error:
            _log.error("the newest snapshot could not be kept on disk", error=str(error))
            return
        _log.warning("the store is away; the newest snapshot is kept on disk", step=snapshot.step)

    async def _prepare(self, wanted: SlotsWanted) -> None:
        """Before the first step: memory for snapshots, and room for checkpoints."""
        seen = partial(
            check_room,
            self._store,
            self._request.strategy.checkpoint,
            SnapshotSize(wanted.length, wanted.changing),
            resumed=self._request.checkpoint is not None,
        )
        # What is to end needs no room for more; its process hears so next.
        with suppress(AttemptStopped):
            await self._patience.run(seen, self._waited_for)
        await asyncio.to_thread(self._slots.reserve, wanted.length)

    def _reference(self) -> CheckpointReference:
        assert self._request.checkpoint is not None
        return self._request.checkpoint

    def _train_word(self, restored: RestoredCheckpoint | None) -> Train:
        return Train(
            operation_id=self._request.operation_id,
            attempt=self._request.attempt,
            strategy=strategy_content(self._request.strategy),
            overrides=json_format.MessageToDict(
                self._request.overrides, preserving_proto_field_name=True
            ),
            data_root=str(self._settings.data_root.absolute()),
            threads=self._request.strategy.training.threads or self._settings.training_threads(),
            device=self._settings.device,
            stall_budget=self._settings.stall_budget,
            allowed_packages=self._settings.allowed_packages,
            **({} if restored is None else self._provenance(restored)),
        )

    def _provenance(self, restored: RestoredCheckpoint) -> dict[str, Any]:
        """What a training process is told of the checkpoint that it goes on from."""
        manifest = restored.manifest
        told: dict[str, Any] = {
            "fingerprint": manifest.fingerprint,
            "data_digest": manifest.data_digest,
            "lineage": [event.to_json() for event in manifest.lineage],
            "replay": restored.earlier,
        }
        if self._request.fork:
            told["forked_from"] = manifest.strategy
            told["origin"] = (
                f"from checkpoint {manifest.checkpoint_id} of {manifest.operation_id}, step "
                f"{manifest.step}"
            )
        return told

    async def _phase(self, phase: Phase.ValueType) -> None:
        await self._progress.publish(TrainingProgress(phase_changed=PhaseChanged(phase=phase)))
