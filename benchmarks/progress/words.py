"""What the scripted training says, by index; the entries of a log that it makes."""

from __future__ import annotations

from typing import Final

from everstep.control.v1.operations_pb2 import OperationEvent
from everstep.training.v1.progress_pb2 import TrainingPosition, TrainingProgress

STEPS_PER_EPOCH: Final = 10
TOTAL_STEPS: Final = 10_000_000
#: The event that a training begins with; it stands in the log before the clock is started.
BEGIN_INDEX: Final = 1


def word(operation_id: str, attempt: int, index: int) -> TrainingProgress:
    """The durable event with this index: step metrics, and every tenth a completed epoch."""
    step = index - BEGIN_INDEX
    said = TrainingProgress(
        operation_id=operation_id,
        attempt=attempt,
        index=index,
        position=TrainingPosition(
            epoch=step // STEPS_PER_EPOCH,
            total_epochs=TOTAL_STEPS // STEPS_PER_EPOCH,
            batch=step % STEPS_PER_EPOCH,
            batches_per_epoch=STEPS_PER_EPOCH,
            step=step,
            total_steps=TOTAL_STEPS,
            fraction=step / TOTAL_STEPS,
        ),
    )
    said.time.GetCurrentTime()
    if index == BEGIN_INDEX:
        said.phase_changed.process_id = 1
    elif step % STEPS_PER_EPOCH:
        metrics = said.step_metrics
        metrics.loss, metrics.learning_rate = 1 / step, 0.001
        metrics.examples_per_second, metrics.gradient_norm = 12_345.6, 0.789
    else:
        done = said.epoch_completed
        done.epoch, done.learning_rate, done.seconds = step // STEPS_PER_EPOCH - 1, 0.001, 0.5
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            done.metrics[name] = 1 / step
    return said


def entry(operation_id: str, sequence: int) -> OperationEvent:
    """The word with this index as it stands in a log, under the same number."""
    said = word(operation_id, 1, sequence)
    return OperationEvent(
        operation_id=operation_id, sequence=sequence, time=said.time, progress=said
    )
