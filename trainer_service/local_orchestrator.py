"""LocalTrainingOrchestrator: the training process of one attempt, its pipe and its restarts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from everstep.errors import EverstepError, Reason
from everstep.training.v1.progress_pb2 import (
    Phase,
    PhaseChanged,
    TrainingProgress,
    TrainingRestarted,
    Warning,
)
from trainer_service.child.pipe import (
    Accepted,
    Cancel,
    Failed,
    Finished,
    Restored,
    Shutdown,
    SlotContent,
    SlotsReady,
    SlotsWanted,
    SnapshotBegun,
    SnapshotHandedOver,
    SnapshotReleased,
    SnapshotTaken,
    TakeCheckpoint,
    Train,
    Word,
)
from trainer_service.child_process import ChildProcess, SpareChildren
from trainer_service.death_causes import OUT_OF_MEMORY, given_up, hung_again, never_fitted
from trainer_service.hang_watch import HangWatch, Silence
from trainer_service.progress import AttemptProgress
from trainer_service.settings import TrainerSettings
from trainer_service.slots import MemorySlots
from trainer_service.snapshot_handover import SnapshotHandover
from trainer_service.step_samples import StepSamples

_log = structlog.get_logger(__name__)

#: Seconds a process that closed its pipe has to be gone by itself.
EXIT_PATIENCE_SECONDS: Final = 10.0
#: The most that a new process is put off.
MAX_BACKOFF_SECONDS: Final = 30.0


class LocalTrainingOrchestrator:
    """Runs one attempt in a training process on this machine.

    A process that dies without a last word, or for want of memory where all had fitted once, is
    replaced by a new one, which goes on from the newest snapshot in memory; the store is not
    touched for it. One that hangs is asked where it is, and ended.
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
        self._snapshots = SnapshotHandover(slots, progress.risk)
        #: Whether data, model and slots have once fitted into memory.
        self._fitted = False
        self._samples = StepSamples()
        self._watch = HangWatch(settings.hung_seconds)
        #: Of the process that runs, or the last one, where it hung; and the stacks of its threads.
        self._hung: Silence | None = None
        self._stacks = ""

    async def run(
        self,
        train: Train,
        snapshot_taken: Callable[[SnapshotTaken], None],
        prepare: Callable[[SlotsWanted], Awaitable[None]],
        resume_context: SlotContent | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> Finished | Failed:
        """Trains to the last word.

        Args:
            train: What to train.
            snapshot_taken: Called with each snapshot that is to become a checkpoint; its slot is
                left alone until `release`.
            prepare: Called before the first step; makes the slots.
            resume_context: The snapshot to go on from; None trains from the beginning.
            digests: Of the resume context by kind; what the process restores is held against them.
        """
        restarts = 0
        self._expected_digests = digests
        self._snapshots.begin(snapshot_taken)
        self._prepare = prepare
        while not self.discarded.is_set():
            outcome, cause = await self._run_process(train, resume_context)
            without_memory = self._without_memory(outcome)
            if outcome is not None and without_memory is None:
                self._snapshots.hand_over_waiting()
                return outcome
            if self.discarded.is_set():
                break
            if OUT_OF_MEMORY in cause and not self._fitted:
                return never_fitted(cause)
            if without_memory is not None:
                _log.warning("no memory", message=without_memory.message)
                cause = OUT_OF_MEMORY
            if restarts == self._settings.max_local_restarts:
                self._snapshots.hand_over_waiting()
                if self._hung is not None:
                    return hung_again(restarts + 1, cause, self._stacks)
                return given_up(restarts + 1, cause, without_memory)
            restarts += 1
            train = self._continued(train, resume_context)
            resume_context = self._slots.newest
            self._expected_digests = None
            await self._restarted(cause, resume_context, restarts)
        return Finished("cancelled", {})

    def _without_memory(self, outcome: Finished | Failed | None) -> Failed | None:
        """The last word of a process that another one may replace, with the memory it gave back."""
        if isinstance(outcome, Failed) and outcome.reason == Reason.OUT_OF_MEMORY and self._fitted:
            return outcome
        return None

    def _continued(self, train: Train, resume_context: SlotContent | None) -> Train:
        """What the next process is told: what the last one accepted, it need not prove again."""
        if self._accepted is not None:
            train = replace(train, lineage=self._accepted.lineage, fingerprint={}, replay=None)
        taken = self.newest_taken
        if taken is not None and taken.content is not resume_context:
            train = replace(
                train,
                fingerprint=taken.fingerprint,
                data_digest=taken.data_digest,
                lineage=taken.lineage,
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
        self._snapshots.request()
        if self._child is not None:
            await self._child.send(TakeCheckpoint())

    async def release(self, slot: int) -> None:
        """Says that a snapshot's slot is read no more."""
        self._snapshots.release(slot)
        if self._child is not None:
            await self._child.send(SnapshotReleased(slot))

    @property
    def newest_taken(self) -> SnapshotTaken | None:
        """The newest complete snapshot that this attempt took."""
        return self._snapshots.newest

    @property
    def newer_waits(self) -> bool:
        """Whether a snapshot waits for the one before it to be stored, or given up."""
        return self._snapshots.is_waiting

    async def _run_process(
        self, train: Train, resume_context: SlotContent | None
    ) -> tuple[Finished | Failed | None, str]:
        """One process from its start to its end: its last word, if it had one, and how it died."""
        child = await self._spares.take()
        self._watch.begin()
        self._hung = None
        try:
            await self._progress.publish(
                TrainingProgress(
                    phase_changed=PhaseChanged(
                        phase=Phase.PHASE_PREPARING, process_id=child.process_id
                    )
                )
            )
            await self._begin(child, replace(train, resume=resume_context))
            outcome = await self._follow(child)
            try:
                async with asyncio.timeout(EXIT_PATIENCE_SECONDS):
                    cause = await child.wait()
            except TimeoutError:
                cause = await child.stop()
            return outcome, cause if self._hung is None else self._hung.cause
        finally:
            self._child = None
            if child.alive:
                await child.stop()

    async def _begin(self, child: ChildProcess, train: Train) -> None:
        """Says `Train`, and then what was said to this attempt before there was this process."""
        if not self._snapshots.held:
            self._snapshots.hand_over_waiting()
        held, waiting = self._snapshots.held, self._snapshots.waiting_trigger
        await child.train(replace(train, held=held, waiting=waiting), self._slots.descriptors)
        self._child = child
        for slot in held:
            if slot not in self._snapshots.held:
                await child.send(SnapshotReleased(slot))
        if self._snapshots.request_is_open:
            await child.send(TakeCheckpoint())
        if self.discarded.is_set():
            await child.stop()
        elif self._ending is not None:
            await child.send(self._ending)

    async def _follow(self, child: ChildProcess) -> Finished | Failed | None:
        """Passes on what a process says, up to its last word; None when it has none."""
        while (said := await self._next_word(child)) is not None:
            match said:
                case bytes():
                    await self._pass_on(child, TrainingProgress.FromString(said))
                case SnapshotBegun() | SnapshotTaken() | SnapshotHandedOver():
                    self._snapshots.note(said)
                case SlotsWanted():
                    try:
                        await self._prepare(said)
                    except EverstepError as error:
                        await child.stop()
                        return Failed(error.reason, error.message)
                    self._fitted = True
                    await child.send(SlotsReady())
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

    async def _next_word(self, child: ChildProcess) -> Word | bytes | None:
        """What a process says next; None when it is gone.

        Of one that hangs, what it says until it is ended still counts: it may have written over a
        slot since.
        """
        word = asyncio.ensure_future(child.receive())
        try:
            silence = await self._watch.wait(word, lambda: child.beat)
            if silence is not None:
                await self._end_hung(child, silence)
            return await word
        finally:
            word.cancel()

    async def _end_hung(self, child: ChildProcess, silence: Silence) -> None:
        self._hung, self._stacks = silence, await child.stacks()
        child.kill()
        _log.warning("training process hangs", cause=silence.cause, stacks=self._stacks)
        await self._progress.publish(
            TrainingProgress(
                warning=Warning(
                    reason="TRAINING_HUNG", message=silence.description, detail=self._stacks
                )
            )
        )

    async def _pass_on(self, child: ChildProcess, event: TrainingProgress) -> None:
        if event.HasField("step_metrics"):
            if self._samples.picks(event.position):
                await self._progress.publish(event)
            else:
                self._progress.show(event)
            if (warning := self._progress.risk.warning()) is not None:
                await self._progress.publish(TrainingProgress(warning=warning))
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
        backoff = self._settings.restart_backoff_seconds * 2 ** (restarts - 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(backoff, MAX_BACKOFF_SECONDS)):
                await self.discarded.wait()
