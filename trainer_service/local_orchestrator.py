"""LocalTrainingOrchestrator: the training process of one attempt, its pipe and its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from everstep.errors import Reason
from everstep.training.v1.progress_pb2 import (
    Phase,
    PhaseChanged,
    TrainingProgress,
    TrainingRestarted,
)
from trainer_service.child.pipe import (
    Accepted,
    Cancel,
    Failed,
    Finished,
    Restored,
    Shutdown,
    SlotContent,
    SnapshotReleased,
    SnapshotTaken,
    TakeCheckpoint,
    Train,
)
from trainer_service.child_process import ChildProcess, SpareChildren
from trainer_service.progress import AttemptProgress
from trainer_service.settings import TrainerSettings
from trainer_service.slots import MemorySlots

_log = structlog.get_logger(__name__)

#: Seconds a process that closed its pipe has to be gone by itself.
EXIT_PATIENCE_SECONDS = 10.0


class LocalTrainingOrchestrator:
    """Runs one attempt in a training process on this machine.

    A process that dies without a last word is replaced by a new one, which goes on from the newest
    snapshot in memory; the store is not touched for it.
    """

    def __init__(
        self,
        spares: SpareChildren,
        slots: MemorySlots,
        progress: AttemptProgress,
        settings: TrainerSettings,
    ) -> None:
        self._spares = spares
        self._slots = slots
        self._progress = progress
        self._settings = settings
        self._child: ChildProcess | None = None
        self._ending: Cancel | Shutdown | None = None
        #: Set when nothing of the attempt is wanted any more.
        self.discarded = asyncio.Event()
        self._expected_digests: Mapping[str, str] | None = None
        self._accepted: Accepted | None = None
        #: The newest that this attempt took.
        self._snapshot: SnapshotTaken | None = None
        self._unreleased: set[int] = set()
        self._slot_released = asyncio.Event()

    async def run(
        self,
        train: Train,
        snapshot_taken: Callable[[SnapshotTaken], None],
        resume_context: SlotContent | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> Finished | Failed:
        """Trains to the last word.

        Args:
            train: What to train.
            snapshot_taken: Called with each snapshot that is to become a checkpoint.
            resume_context: The snapshot to go on from; None trains from the beginning.
            digests: Of the resume context by kind; what the process restores is held against them.
        """
        restarts = 0
        self._expected_digests = digests
        while not self.discarded.is_set():
            outcome, cause = await self._run_process(train, snapshot_taken, resume_context)
            if outcome is not None:
                return outcome
            if self.discarded.is_set():
                break
            if restarts == self._settings.max_local_restarts:
                return Failed(
                    Reason.TRAINING_PROCESS_DIED,
                    f"the training process died {restarts + 1} times (last: {cause}); see the "
                    "trainer's log, and its memory",
                )
            restarts += 1
            train = self._continued(train, resume_context)
            resume_context = self._slots.newest
            self._expected_digests = None
            await self._restarted(cause, resume_context, restarts)
        return Finished("cancelled", {})

    def _continued(self, train: Train, resume_context: SlotContent | None) -> Train:
        """What the next process is told: what the last one accepted, it need not prove again."""
        if self._accepted is not None:
            train = replace(train, lineage=self._accepted.lineage, fingerprint={}, replay=None)
        if self._snapshot is not None and self._slots.newest is not resume_context:
            train = replace(
                train,
                fingerprint=self._snapshot.fingerprint,
                data_digest=self._snapshot.data_digest,
                lineage=self._snapshot.lineage,
                replay=None,
                forked_from={},
            )
        return train

    async def cancel(self, discard: bool) -> None:
        """Ends the training after its step, or at once when its state is not wanted."""
        self._ending = Cancel(discard)
        if discard:
            self.discarded.set()
            if self._child is not None:
                await self._child.stop()
        elif self._child is not None:
            await self._child.send(self._ending)

    async def shutdown(self) -> None:
        """Ends the training after its step, with a checkpoint for another trainer."""
        if self._ending is None:
            self._ending = Shutdown()
        if self._child is not None:
            await self._child.send(self._ending)

    async def take_checkpoint(self) -> None:
        """Asks for a checkpoint after the current step."""
        if self._child is not None:
            await self._child.send(TakeCheckpoint())

    async def release(self, slot: int, stored: bool) -> None:
        """Says that a snapshot's slot may be written again."""
        self._unreleased.discard(slot)
        self._slot_released.set()
        if self._child is not None:
            await self._child.send(SnapshotReleased(slot, stored))

    async def _run_process(
        self,
        train: Train,
        snapshot_taken: Callable[[SnapshotTaken], None],
        resume_context: SlotContent | None,
    ) -> tuple[Finished | Failed | None, str]:
        """One process from its start to its end: its last word, if it had one, and how it died."""
        # A new process knows only of the slot that it goes on from.
        keep = set() if resume_context is None else {resume_context.slot}
        while self._unreleased - keep:
            self._slot_released.clear()
            await self._slot_released.wait()
        child = await self._spares.take()
        self._child = child
        try:
            await self._progress.publish(
                TrainingProgress(
                    phase_changed=PhaseChanged(
                        phase=Phase.PHASE_PREPARING, process_id=child.process_id
                    )
                )
            )
            await child.train(replace(train, resume=resume_context), self._slots.descriptors)
            for slot in keep - self._unreleased:
                await child.send(SnapshotReleased(slot, stored=True))
            if self.discarded.is_set():
                await child.stop()
            elif self._ending is not None:
                await child.send(self._ending)
            outcome = await self._follow(child, snapshot_taken)
            try:
                cause = await asyncio.wait_for(child.wait(), EXIT_PATIENCE_SECONDS)
            except TimeoutError:
                cause = await child.stop()
            return outcome, cause
        finally:
            self._child = None
            if child.alive:
                await child.stop()

    async def _follow(
        self, child: ChildProcess, snapshot_taken: Callable[[SnapshotTaken], None]
    ) -> Finished | Failed | None:
        """Passes on what a process says, up to its last word; None when it has none."""
        while (said := await child.receive()) is not None:
            match said:
                case bytes():
                    await self._pass_on(child, TrainingProgress.FromString(said))
                case SnapshotTaken():
                    self._slots.newest = said.content
                    self._snapshot = said
                    self._unreleased.add(said.content.slot)
                    snapshot_taken(said)
                case Accepted():
                    self._accepted = said
                case Restored():
                    _log.info("restored", step=said.step, process_id=child.process_id)
                    if self._expected_digests not in (None, said.digests):
                        await child.stop()
                        return Failed(
                            Reason.CHECKPOINT_CORRUPT,
                            "what the training process restored is not what the checkpoint holds",
                        )
                case Finished() | Failed():
                    return said
                case _:
                    _log.warning("unexpected word from the training process", word=said)
        return None

    async def _pass_on(self, child: ChildProcess, event: TrainingProgress) -> None:
        if event.HasField("step_metrics"):
            self._progress.show(event)
            return
        if event.HasField("phase_changed"):
            event.phase_changed.process_id = child.process_id
        await self._progress.publish(event)

    async def _restarted(
        self, cause: str, resume_context: SlotContent | None, restarts: int
    ) -> None:
        from_step = 0 if resume_context is None else int(resume_context.state["step"])
        _log.warning("training process died", cause=cause, from_step=from_step, restart=restarts)
        await self._progress.publish(
            TrainingProgress(
                training_restarted=TrainingRestarted(
                    cause=cause,
                    from_step=from_step,
                    source="beginning" if resume_context is None else "memory",
                    restart=restarts,
                )
            )
        )
        await asyncio.sleep(self._settings.restart_backoff_seconds * 2 ** (restarts - 1))
