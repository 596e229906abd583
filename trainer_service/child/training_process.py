"""One training in this process: what the trainer says is heard, what happens is told."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from google.protobuf import json_format

from checkpoint_store.digests import json_digest, kind_digest, tensor_digest
from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from trainer_service.child.events import (
    CancellationToken,
    Event,
    Position,
    RollbackWanted,
    RolledBack,
    Stop,
    TrainingStopped,
)
from trainer_service.child.fingerprint import check_fingerprint, fingerprint
from trainer_service.child.pipe import (
    Cancel,
    ChildPipe,
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
from trainer_service.child.randomness import prepare_threads
from trainer_service.child.reporting import progress_message
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.snapshot import DTYPE_WORDS, SnapshotSlots
from trainer_service.child.training_pipeline import (
    PipelineSettings,
    TrainingPipeline,
    monitored_metric,
)
from trainer_service.strategies.data import LoadedData

#: The exit code of a process whose trainer is gone.
TRAINER_GONE: Final = 70
#: A training that is not finite after so many rollbacks needs another strategy.
MAX_ROLLBACKS: Final = 3


class TrainingProcess:
    """Runs one `Train` to its last word."""

    def __init__(self, pipe: ChildPipe, train: Train, slots: tuple[int, ...]) -> None:
        self._pipe = pipe
        self._train = train
        self._slots = SnapshotSlots(slots)
        self._token = CancellationToken()
        self._fingerprint: dict[str, str] = {}
        self._data_digest = ""
        self._monitor = ""
        #: The newest complete snapshot.
        self._newest = train.resume
        self._strategy = TrainingStrategy()
        json_format.ParseDict(train.strategy, self._strategy)

    def run(self) -> None:
        """Trains and sends the last word, `Finished` or `Failed`."""
        signal.signal(signal.SIGTERM, lambda *_: self._token.request_stop(Stop.SHUTDOWN))
        if self._train.resume is not None:
            self._slots.resumed_from(self._train.resume.slot)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._pipe.send(self._outcome())
        except EverstepError as error:
            violations = tuple(
                (violation.field, violation.description) for violation in error.violations
            )
            self._pipe.send(Failed(error.reason.value, error.message, violations))
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self._pipe.send(
                Failed(
                    Reason.TRAINING_FAILED.value,
                    f"the training raised {text[:500]}",
                    detail=traceback.format_exc(limit=-20),
                )
            )

    def _outcome(self) -> Finished:
        prepare_threads(self._train.threads)
        torch.use_deterministic_algorithms(self._strategy.training.deterministic)
        self._fingerprint = fingerprint()
        if self._train.fingerprint:
            check_fingerprint(self._train.fingerprint, self._fingerprint)
        pipeline = TrainingPipeline(
            PipelineSettings(Path(self._train.data_root), self._train.allowed_packages),
            progress_callback=self._report,
            cancellation_token=self._token,
            checkpoint_callback=self._checkpoint,
            data_loaded=self._compare_data,
        )
        try:
            finished = Finished("completed", self._train_to_the_end(pipeline))
        except TrainingStopped as stopped:
            outcome = "handed_over" if stopped.stop is Stop.SHUTDOWN else "cancelled"
            finished = Finished(outcome, {})
        self._slots.wait_until_released()
        return finished

    def _train_to_the_end(self, pipeline: TrainingPipeline) -> dict[str, Any]:
        """Trains, from the newest snapshot on again where the strategy wants a rollback."""
        context = self._context(self._train.resume)
        if context is not None:
            self._pipe.send(Restored(context_digests(context), context.step))
        leave_out = None
        for rollbacks in count(1):
            try:
                return pipeline.train_strategy(
                    self._strategy,
                    self._train.overrides,
                    resume_context=context,
                    leave_out=leave_out,
                )
            except RollbackWanted as wanted:
                context = self._context(self._newest)
                leave_out = self._roll_back(wanted, 0 if context is None else context.step)
                if rollbacks == MAX_ROLLBACKS:
                    raise EverstepError(
                        Reason.NON_FINITE_LOSS,
                        f"{wanted.message}; after {MAX_ROLLBACKS} rollbacks: lower the learning "
                        "rate, clip gradients, or look at the data",
                    ) from None
        raise AssertionError("unreachable")

    def _roll_back(self, wanted: RollbackWanted, step: int) -> tuple[int, int]:
        """Says so, and which steps are left out."""
        if step >= wanted.step:
            raise EverstepError(
                Reason.NON_FINITE_LOSS,
                f"{wanted.message}, and the newest checkpoint is no earlier; resume from one "
                "before it",
            )
        self._report(
            replace(wanted.position, step=step),
            RolledBack(
                step,
                f"{wanted.message}: back to step {step}; steps {step + 1} to {wanted.step} are "
                "left out",
            ),
        )
        return step + 1, wanted.step

    def _context(self, content: SlotContent | None) -> TrainingResumeContext | None:
        if content is None:
            return None
        return TrainingResumeContext.from_state(
            content.state, self._slots.read(content), self._train.strategy
        )

    def _compare_data(self, data: LoadedData) -> None:
        self._data_digest = data.digest
        self._monitor = monitored_metric(self._strategy, data)
        if self._train.data_digest and self._train.data_digest != data.digest:
            raise EverstepError(
                Reason.ENVIRONMENT_MISMATCH,
                f"the data in {self._strategy.data.source} is not what the checkpoint was made "
                "with; restore that data, or start a new training",
                metadata={"differences": "data"},
            )

    def _report(self, position: Position, event: Event) -> None:
        self._pipe.send_progress(progress_message(position, event).SerializeToString())

    def _checkpoint(self, trigger: str, context: TrainingResumeContext) -> bool:
        """Takes a snapshot; only a periodic one may be put off."""
        began = time.monotonic()
        slot = self._slots.free_slot(wait=trigger != "PERIODIC")
        if slot is None:
            return False
        blobs = self._slots.write(slot, context.tensors())
        self._newest = SlotContent(slot, blobs, context.small_state())
        history = context.training_history
        self._pipe.send(
            SnapshotTaken(
                content=self._newest,
                trigger=trigger,
                epoch=context.start_epoch,
                step=context.step,
                metrics=history[-1].metrics if history else {},
                monitor=self._monitor,
                monitor_value=history[-1].metrics.get(self._monitor) if history else None,
                fingerprint=self._fingerprint,
                data_digest=self._data_digest,
                stall_seconds=time.monotonic() - began,
            )
        )
        return True

    def _listen(self) -> None:
        """Hears the trainer; ends this process when it is gone."""
        while True:
            word, _ = self._pipe.receive()
            match word:
                case None:
                    os._exit(TRAINER_GONE)
                case Cancel(discard):
                    self._token.request_stop(Stop.DISCARD if discard else Stop.CANCEL)
                case Shutdown():
                    self._token.request_stop(Stop.SHUTDOWN)
                case TakeCheckpoint():
                    self._token.request_checkpoint()
                case SnapshotReleased(slot, _):
                    self._slots.released(slot)


def context_digests(context: TrainingResumeContext) -> dict[str, str]:
    """Digests by kind, equal to those of the checkpoint that the context came from."""
    digests = {
        kind: kind_digest(
            (
                name,
                tensor_digest(
                    name,
                    DTYPE_WORDS[tensor.dtype],
                    tuple(tensor.shape),
                    _bytes(tensor),
                ),
            )
            for name, tensor in tensors.items()
        )
        for kind, tensors in context.tensors().items()
        if tensors
    }
    state: dict[str, Any] = context.small_state()
    digests["history"] = json_digest(state["history"])
    digests["progress"] = json_digest({k: v for k, v in state.items() if k != "history"})
    digests["state"] = kind_digest(digests.items())
    return digests


def _bytes(tensor: torch.Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
