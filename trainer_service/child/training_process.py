"""One training in this process: what the trainer says is heard, what happens is told."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from google.protobuf import json_format

from checkpoint_store.lineage import ROLLED_BACK, LineageEvent
from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from trainer_service.child.acceptance import (
    accept_data,
    accept_environment,
    accept_overrides,
)
from trainer_service.child.context_digests import context_digests
from trainer_service.child.devices import choose_device
from trainer_service.child.events import (
    CancellationToken,
    CheckpointDelayed,
    Event,
    Position,
    RollbackWanted,
    RolledBack,
    Stop,
    TrainingStopped,
)
from trainer_service.child.fingerprint import fingerprint
from trainer_service.child.heartbeat import Activity, Heartbeat
from trainer_service.child.memory_errors import is_out_of_memory, memory_wanted
from trainer_service.child.pipe import (
    OUT_OF_MEMORY_EXIT,
    Accepted,
    Cancel,
    ChildPipe,
    Failed,
    Finished,
    Restored,
    Shutdown,
    SlotContent,
    SlotsReady,
    SnapshotReleased,
    TakeCheckpoint,
    Train,
)
from trainer_service.child.randomness import prepare_threads
from trainer_service.child.replay import replay_fault
from trainer_service.child.reporting import progress_message
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.snapshots import Snapshots
from trainer_service.child.training_pipeline import (
    PipelineSettings,
    TrainingPipeline,
    monitored_metric,
)
from trainer_service.strategies.data import LoadedData

#: The exit code of a process whose trainer is gone.
TRAINER_GONE: Final = 70
#: Characters of a traceback that are told, of each end: a message may hold a whole tensor.
MAX_DETAIL: Final = 16 * 1024
#: A training that is not finite after so many rollbacks needs another strategy.
MAX_ROLLBACKS: Final = 3


class TrainingProcess:
    """Runs one `Train` to its last word."""

    def __init__(
        self, pipe: ChildPipe, train: Train, slots: tuple[int, ...], heartbeat: Heartbeat
    ) -> None:
        self._pipe = pipe
        self._train = train
        self._heartbeat = heartbeat
        self._token = CancellationToken()
        self._fingerprint: dict[str, str] = {}
        self._data_digest = ""
        self._monitor = ""
        self._data_accepted = False
        self._lineage = [LineageEvent.from_json(event) for event in train.lineage]
        self._device = choose_device(train.device)
        self._settings = PipelineSettings(
            Path(train.data_root), train.allowed_packages, train.stall_budget, self._device
        )
        self._snapshots = Snapshots(
            pipe, train, slots, self._described, self._delayed, self._device
        )
        self._strategy = TrainingStrategy()
        json_format.ParseDict(train.strategy, self._strategy)

    def run(self) -> None:
        """Trains and sends the last word, `Finished` or `Failed`."""
        signal.signal(signal.SIGTERM, lambda *_: self._token.request_stop(Stop.SHUTDOWN))
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._pipe.send(self._outcome())
        except EverstepError as error:
            violations = tuple(
                (violation.field, violation.description) for violation in error.violations
            )
            self._pipe.send(Failed(error.reason.value, error.message, violations))
        except Exception as error:
            try:
                self._pipe.send(_failed(error, self._device.description))
            except MemoryError:
                os._exit(OUT_OF_MEMORY_EXIT)
        finally:
            self._snapshots.close()

    def _outcome(self) -> Finished:
        prepare_threads(self._train.threads)
        torch.use_deterministic_algorithms(self._strategy.training.deterministic)
        self._device.start()
        self._fingerprint = fingerprint(self._strategy, self._device)
        context = self._context(self._train.resume)
        if context is not None:
            self._pipe.send(Restored(context_digests(context), context.step))
            self._accept(context)
        pipeline = TrainingPipeline(
            self._settings,
            progress_callback=self._report,
            cancellation_token=self._token,
            checkpoint_callback=self._take_snapshot,
            data_loaded=self._compare_data,
            state_built=self._snapshots.prepare,
            heartbeat=self._heartbeat,
        )
        try:
            return Finished("completed", self._train_to_the_end(pipeline, context))
        except TrainingStopped as stopped:
            outcome = "handed_over" if stopped.stop is Stop.SHUTDOWN else "cancelled"
            return Finished(outcome, {})

    def _accept(self, context: TrainingResumeContext) -> None:
        """Says what the lineage is from here on, or refuses to go on."""

        def replay() -> str:
            earlier = self._context(self._train.replay)
            if earlier is None:
                return "and no checkpoint before it is there to run steps again from"
            return replay_fault(
                self._strategy,
                self._settings,
                earlier,
                context,
                self._train.overrides.get("epochs"),
                self._heartbeat,
            )

        self._lineage += accept_environment(self._train, self._fingerprint, context, replay)
        self._lineage += accept_overrides(self._train, context)
        self._pipe.send(Accepted([event.to_json() for event in self._lineage]))

    def _train_to_the_end(
        self, pipeline: TrainingPipeline, context: TrainingResumeContext | None
    ) -> dict[str, Any]:
        """Trains, from the newest snapshot on again where the strategy wants a rollback."""
        leave_out, forked_from = None, self._train.forked_from or None
        for rollbacks in count(1):
            try:
                return pipeline.train_strategy(
                    self._strategy,
                    self._train.overrides,
                    resume_context=context,
                    leave_out=leave_out,
                    forked_from=forked_from,
                )
            except RollbackWanted as wanted:
                if rollbacks > MAX_ROLLBACKS:
                    raise EverstepError(
                        Reason.NON_FINITE_LOSS,
                        f"{wanted.message}, after {MAX_ROLLBACKS} rollbacks; lower the learning "
                        "rate, clip gradients, or look at the data",
                    ) from None
                newest = self._snapshots.newest
                context = self._context(newest)
                if newest is not self._train.resume:
                    forked_from = None
                leave_out = self._roll_back(wanted, 0 if context is None else context.step)
        raise AssertionError("unreachable")

    def _roll_back(self, wanted: RollbackWanted, step: int) -> tuple[int, int]:
        """Says so, and which steps are left out."""
        if step >= wanted.step:
            raise EverstepError(
                Reason.NON_FINITE_LOSS,
                f"{wanted.message}, and the newest checkpoint is no earlier; resume from one "
                "before it",
            )
        message = (
            f"{wanted.message}: back to step {step}; steps {step + 1} to {wanted.step} are left out"
        )
        self._lineage.append(LineageEvent(ROLLED_BACK, step, message))
        self._report(replace(wanted.position, step=step), RolledBack(step, message))
        return step + 1, wanted.step

    def _context(self, content: SlotContent | None) -> TrainingResumeContext | None:
        if content is None:
            return None
        return TrainingResumeContext.from_state(
            content.state, self._snapshots.read(content), self._train.strategy
        )

    def _compare_data(self, data: LoadedData) -> None:
        self._data_digest = data.digest
        self._monitor = monitored_metric(self._strategy, data)
        newest = self._snapshots.newest
        step = 0 if newest is None else int(newest.state["step"])
        if not self._data_accepted:
            self._lineage += accept_data(self._train, self._strategy.data.source, data.digest, step)
            self._data_accepted = True

    def _report(self, position: Position | None, event: Event) -> None:
        self._pipe.send_progress(progress_message(position, event).SerializeToString())

    def _take_snapshot(self, trigger: str, capture: Callable[[], TrainingResumeContext]) -> None:
        self._heartbeat.begin(Activity.SNAPSHOT)
        self._snapshots.take(trigger, capture)

    def _described(self, context: TrainingResumeContext) -> dict[str, Any]:
        """What a checkpoint of this state says of it."""
        history = context.training_history
        return {
            "epoch": context.start_epoch,
            "step": context.step,
            "metrics": history[-1].metrics if history else {},
            "monitor": self._monitor,
            "monitor_value": history[-1].metrics.get(self._monitor) if history else None,
            "fingerprint": self._fingerprint,
            "data_digest": self._data_digest,
            "lineage": [event.to_json() for event in self._lineage],
        }

    def _delayed(self, step: int, by_step: int) -> None:
        message = (
            f"the checkpoint of step {step} is left out: the one before it is still on its way to "
            f"the store, and that of step {by_step} takes its place"
        )
        self._report(None, CheckpointDelayed(step, message))

    def _listen(self) -> None:
        """Hears the trainer; ends this process when it is gone."""
        while True:
            try:
                word, _ = self._pipe.receive()
            except MemoryError:
                # A process that hears nothing any more could not even be cancelled.
                os._exit(OUT_OF_MEMORY_EXIT)
            match word:
                case None:
                    os._exit(TRAINER_GONE)
                case Cancel(discard):
                    self._token.request_stop(Stop.DISCARD if discard else Stop.CANCEL)
                case Shutdown():
                    self._token.request_stop(Stop.SHUTDOWN)
                case TakeCheckpoint():
                    self._token.request_checkpoint()
                case SlotsReady():
                    self._snapshots.ready()
                case SnapshotReleased(slot):
                    self._snapshots.released(slot)


def _failed(error: Exception, device: str) -> Failed:
    """The last word of a training that raised an error."""
    detail = traceback.format_exc(limit=-20)
    if len(detail) > 2 * MAX_DETAIL:
        detail = f"{detail[:MAX_DETAIL]}\n...\n{detail[-MAX_DETAIL:]}"
    if is_out_of_memory(error):
        return Failed(Reason.OUT_OF_MEMORY.value, memory_wanted(error, device), detail=detail)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return Failed(Reason.TRAINING_FAILED.value, f"the training raised {text}", detail=detail)
