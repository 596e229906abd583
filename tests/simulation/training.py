"""A training whose state is a chain of digests: a step that is left out or done twice shows.

It stands where the trainer has the process that trains. The real TrainingWorker, Uploader, journal
and store code are around it; state goes through the real slots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

from blake3 import blake3

from everstep.training.v1.progress_pb2 import (
    EpochCompleted,
    Phase,
    PhaseChanged,
    StepMetrics,
    TrainingPosition,
    TrainingProgress,
    TrainingRestarted,
)
from tests.simulation.chain import EPOCH_STEPS, LAYOUT, State
from tests.simulation.loop import PROCESS, Process
from trainer_service.child.pipe import (
    Failed,
    Finished,
    SlotBlob,
    SlotContent,
    SlotsWanted,
    SnapshotTaken,
    Train,
)
from trainer_service.progress import AttemptProgress
from trainer_service.settings import TrainerSettings
from trainer_service.shared_memory import write
from trainer_service.slots import MemorySlots


class SimulatedOrchestrator:
    """In the place of LocalTrainingOrchestrator: the process that trains, and its restarts."""

    #: Draws how long steps take; set for each schedule.
    draw: ClassVar[random.Random] = random.Random(0)
    #: Those that train now.
    working: ClassVar[dict[SimulatedOrchestrator, None]] = {}

    def __init__(
        self,
        _spares: object,
        slots: MemorySlots,
        progress: AttemptProgress,
        _settings: TrainerSettings,
    ) -> None:
        self._slots = slots
        self._progress = progress
        self._ending = ""
        self.discarded = asyncio.Event()
        self._requested = False
        self._held: set[int] = set()
        self._taken: dict[int, SnapshotTaken] = {}
        self._waiting: SnapshotTaken | None = None
        self._killed = asyncio.Event()
        self._restarts = 0
        self.process: Process | None = PROCESS.get()

    @property
    def newest_taken(self) -> SnapshotTaken | None:
        """The newest complete snapshot that this attempt took."""
        newest = self._slots.newest
        return None if newest is None else self._taken.get(newest.slot)

    @property
    def newer_waits(self) -> bool:
        """Whether a snapshot waits for the one before it."""
        return self._waiting is not None

    def kill_child(self) -> None:
        """The process that trains dies."""
        self._killed.set()

    async def run(
        self,
        train: Train,
        snapshot_taken: Callable[[SnapshotTaken], None],
        prepare: Callable[[SlotsWanted], Awaitable[None]],
        resume_context: SlotContent | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> Finished | Failed:
        """As LocalTrainingOrchestrator.run."""
        del digests
        self._seed = int(train.strategy.get("seed", 0))
        self._epochs = int(train.overrides.get("epochs") or train.strategy["training"]["epochs"])
        self._every = int(train.strategy["checkpoint"].get("every_steps", 0))
        self._snapshot_taken, self._prepare = snapshot_taken, prepare
        self.working[self] = None
        try:
            return await self._run(resume_context)
        finally:
            self.working.pop(self, None)

    async def cancel(self, discard: bool) -> None:
        self._ending = "CANCELLATION"
        if discard:
            self.discarded.set()

    async def shutdown(self) -> None:
        self._ending = self._ending or "SHUTDOWN"

    async def take_checkpoint(self) -> None:
        self._requested = True

    async def release(self, slot: int) -> None:
        self._held.discard(slot)
        if not self._held:
            self._hand_over()

    async def _run(self, resume_context: SlotContent | None) -> Finished | Failed:
        content = resume_context
        while not self.discarded.is_set():
            self._killed.clear()
            outcome = await self._run_child(content)
            if outcome is not None:
                self._hand_over()
                return outcome
            if self.discarded.is_set():
                break
            content = self._slots.newest
            self._restarts += 1
            from_step = 0 if content is None else int(content.state["step"])
            await self._progress.publish(
                TrainingProgress(
                    training_restarted=TrainingRestarted(
                        cause="signal SIGKILL",
                        from_step=from_step,
                        source="beginning" if content is None else "memory",
                        restart=self._restarts,
                    )
                )
            )
        return Finished("cancelled", {})

    async def _run_child(self, content: SlotContent | None) -> Finished | None:
        """One process from its start to its end; None when it dies, or is not wanted."""
        await self._phase(Phase.PHASE_PREPARING)
        if await self._dies(self.draw.uniform(0.05, 0.4)):
            return None
        state = State(self._seed) if content is None else State.of_slot(self._slots, content)
        length = LAYOUT[-1].offset + LAYOUT[-1].length
        await self._prepare(SlotsWanted(length, length))
        await self._phase(Phase.PHASE_TRAINING)
        total = self._epochs * EPOCH_STEPS
        while state.step < total:
            if self._ending:
                self._snapshot(state, self._ending)
                word = "cancelled" if self._ending == "CANCELLATION" else "handed_over"
                return Finished(word, {})
            if await self._dies(self.draw.uniform(0.1, 0.5)):
                return None
            state.advance()
            await self._say_step(state, total)
            if self._requested:
                self._requested = False
                self._snapshot(state, "REQUESTED")
            elif self._every and state.step % self._every == 0 and state.step < total:
                self._snapshot(state, "PERIODIC")
        self._snapshot(state, "FINAL")
        return Finished("completed", {"epochs": self._epochs, "steps": total})

    async def _dies(self, seconds: float) -> bool:
        """Lets time pass; whether the process was killed meanwhile, or is not wanted any more."""
        waits = [
            asyncio.create_task(self._killed.wait()),
            asyncio.create_task(self.discarded.wait()),
        ]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        return bool(done)

    async def _say_step(self, state: State, total: int) -> None:
        position = TrainingPosition(
            epoch=state.step // EPOCH_STEPS,
            total_epochs=self._epochs,
            batch=state.step % EPOCH_STEPS,
            batches_per_epoch=EPOCH_STEPS,
            step=state.step,
            total_steps=total,
            fraction=state.step / total,
        )
        metrics = TrainingProgress(
            position=position,
            step_metrics=StepMetrics(loss=state.loss, learning_rate=0.1),
        )
        if state.step % EPOCH_STEPS == 0:
            await self._progress.publish(
                TrainingProgress(
                    position=position,
                    epoch_completed=EpochCompleted(
                        epoch=state.step // EPOCH_STEPS - 1, metrics={"val_loss": state.loss}
                    ),
                )
            )
        elif state.step % EPOCH_STEPS == 1:
            await self._progress.publish(metrics)
        else:
            self._progress.show(metrics)

    def _snapshot(self, state: State, trigger: str) -> None:
        newest = self._slots.newest
        taken = 0 if newest is None else newest.slot
        slot = next((slot for slot in (1 - taken, taken) if slot not in self._held), None)
        if slot is None:
            return
        self._slots.begun(slot)
        self._taken.pop(slot, None)
        self._waiting = None
        with memoryview(state.to_bytes()) as memory:
            write(self._slots.descriptors[slot], 0, memory)
        content = SlotContent(
            slot,
            tuple(SlotBlob(blob.kind, blob.offset, blob.length) for blob in LAYOUT),
            state.small(),
        )
        self._slots.completed(content)
        snapshot = SnapshotTaken(
            content=content,
            trigger=trigger,
            handed_over=not self._held,
            epoch=state.step // EPOCH_STEPS,
            step=state.step,
            metrics={"val_loss": state.loss},
            monitor="val_loss",
            monitor_value=state.loss,
            fingerprint={},
            data_digest=blake3(b"data").hexdigest(),
            lineage=[],
            stall_seconds=0.0,
        )
        self._progress.risk.snapshot_taken(snapshot)
        self._taken[slot] = self._waiting = snapshot
        if not self._held:
            self._hand_over()

    def _hand_over(self) -> None:
        snapshot, self._waiting = self._waiting, None
        if snapshot is not None:
            self._held.add(snapshot.content.slot)
            self._snapshot_taken(snapshot)

    async def _phase(self, phase: Phase.ValueType) -> None:
        await self._progress.publish(
            TrainingProgress(phase_changed=PhaseChanged(phase=phase, process_id=1))
        )
