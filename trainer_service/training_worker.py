"""TrainingWorker: one attempt, from its request to its last word."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from google.protobuf import json_format

from checkpoint_store.blobs import BlobStore
from everstep.errors import EverstepError, Reason
from everstep.strategy import strategy_content, strategy_digest
from everstep.training.v1 import progress_pb2
from everstep.training.v1.checkpoint_pb2 import Checkpoint, CheckpointReference
from everstep.training.v1.progress_pb2 import (
    Phase,
    PhaseChanged,
    TrainingError,
    TrainingProgress,
    TrainingResult,
)
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy
from trainer_service.child.pipe import Failed, Finished, SlotContent, Train
from trainer_service.child_process import SpareChildren
from trainer_service.local_orchestrator import LocalTrainingOrchestrator
from trainer_service.progress import AttemptProgress
from trainer_service.restorer import RestoredCheckpoint, check_strategy_digest, restore
from trainer_service.settings import TrainerSettings
from trainer_service.slots import MemorySlots
from trainer_service.uploader import UploadContext, Uploader

_log = structlog.get_logger(__name__)

#: Another attempt may go better: the training itself is not at fault.
RESTARTABLE = frozenset(
    {
        Reason.DRAINING,
        Reason.TRAINER_RESTARTED,
        Reason.TRAINING_PROCESS_DIED,
        Reason.STORE_UNAVAILABLE,
        Reason.CHECKPOINT_CORRUPT,
    }
)


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
        settings: TrainerSettings,
    ) -> None:
        self._request = request
        self._progress = progress
        self._store = store
        self._settings = settings
        self._slots = MemorySlots()
        self._orchestrator = LocalTrainingOrchestrator(spares, self._slots, progress, settings)
        self._replaced_by: int | None = None

    async def run(self) -> None:
        """Trains; whatever happens, the attempt's last word is published."""
        try:
            last_word = await self._train()
        except EverstepError as error:
            last_word = failed(error)
        except Exception as error:
            _log.exception("attempt failed", operation_id=self._request.operation_id)
            last_word = failed(EverstepError(Reason.INTERNAL, f"the trainer failed: {error}"))
        finally:
            self._slots.close()
        if self._replaced_by is not None:
            last_word = failed(
                EverstepError(
                    Reason.ATTEMPT_REPLACED,
                    f"attempt {self._replaced_by} has replaced this one; watch that one",
                )
            )
        await self._progress.publish(last_word)

    async def cancel(self, discard: bool) -> None:
        """Stops after the current step, with a checkpoint unless discarded."""
        await self._orchestrator.cancel(discard)

    async def shutdown(self) -> None:
        """Stops after the current step, for another trainer to go on."""
        await self._orchestrator.shutdown()

    async def take_checkpoint(self) -> None:
        """A checkpoint after the current step."""
        await self._orchestrator.take_checkpoint()

    async def replace(self, attempt: int) -> None:
        """Stops at once: a newer attempt has begun."""
        self._replaced_by = attempt
        await self._orchestrator.cancel(discard=True)

    async def _train(self) -> TrainingProgress:
        await self._phase(Phase.PHASE_PREPARING)
        await asyncio.to_thread(self._store.check)
        restored = await self._restore()
        uploader = Uploader(
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
            outcome = await self._orchestrator.run(
                self._train_word(restored),
                uploader.submit,
                self._prepare,
                resume_context=resume_context,
                digests=None if restored is None else restored.manifest.digests,
            )
            await self._drain(uploader)
        finally:
            await uploader.close()
        return self._last_word(outcome, uploader)

    async def _drain(self, uploader: Uploader) -> None:
        """Waits until all is stored, unless it is not wanted any more."""
        waits = [
            asyncio.create_task(uploader.drain()),
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
        restored = await asyncio.to_thread(restore, self._store, self._reference(), self._slots)
        if not self._request.fork:
            check_strategy_digest(restored.manifest, strategy_digest(self._request.strategy))
        return restored

    async def _prepare(self, length: int) -> None:
        """Before the first step: memory for snapshots of that length."""
        await asyncio.to_thread(self._slots.reserve, length)

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

    def _last_word(self, outcome: Finished | Failed, uploader: Uploader) -> TrainingProgress:
        checkpoint = uploader.committed
        if isinstance(outcome, Failed):
            return failed_word(outcome, checkpoint)
        if outcome.outcome == "cancelled":
            return TrainingProgress(cancelled=progress_pb2.Cancelled(checkpoint=checkpoint))
        if outcome.outcome == "handed_over":
            draining = EverstepError(
                Reason.DRAINING, "the trainer stops; another one goes on from the checkpoint"
            )
            return failed(draining, checkpoint)
        if uploader.error is not None or checkpoint is None:
            return failed(
                uploader.error
                or EverstepError(Reason.INTERNAL, "the training ended without a checkpoint"),
                checkpoint,
            )
        result = TrainingResult(checkpoint=checkpoint, digests=checkpoint.digests)
        json_format.ParseDict(outcome.result, result)
        word = TrainingProgress(completed=progress_pb2.Completed(result=result))
        word.position.CopyFrom(self._progress.position)
        word.position.fraction = 1.0
        word.position.eta_seconds = 0.0
        return word


def failed(error: EverstepError, checkpoint: Checkpoint | None = None) -> TrainingProgress:
    """The last word of an attempt that ended with an error."""
    return failed_word(
        Failed(
            error.reason,
            error.message,
            tuple((violation.field, violation.description) for violation in error.violations),
        ),
        checkpoint,
    )


def failed_word(error: Failed, checkpoint: Checkpoint | None) -> TrainingProgress:
    """The last word of an attempt whose training process ended with an error."""
    return TrainingProgress(
        failed=progress_pb2.Failed(
            error=TrainingError(
                reason=error.reason,
                message=error.message,
                violations=[
                    progress_pb2.FieldViolation(field=field, description=description)
                    for field, description in error.violations
                ],
                detail=error.detail,
                restartable=error.reason in RESTARTABLE,
            ),
            checkpoint=checkpoint,
        )
    )
