"""A training's events in the contract's words."""

from __future__ import annotations

from everstep.training.v1 import progress_pb2
from everstep.training.v1.checkpoint_pb2 import CheckpointTrigger
from trainer_service.child.events import (
    CheckpointDelayed,
    EpochCompleted,
    Event,
    PhaseChanged,
    Position,
    RolledBack,
    StepMetrics,
    StepSkipped,
)


def progress_message(position: Position | None, event: Event) -> progress_pb2.TrainingProgress:
    """A TrainingProgress without what the trainer adds: operation, attempt, index, time.

    Without a position it is that of the event before.
    """
    message = progress_pb2.TrainingProgress(
        position=None if position is None else _position_message(position)
    )
    match event:
        case PhaseChanged(phase):
            message.phase_changed.phase = progress_pb2.Phase.Value(f"PHASE_{phase}")
        case StepMetrics():
            message.step_metrics.CopyFrom(
                progress_pb2.StepMetrics(
                    loss=event.loss,
                    learning_rate=event.learning_rate,
                    examples_per_second=event.examples_per_second,
                    gradient_norm=event.gradient_norm,
                )
            )
        case EpochCompleted():
            message.epoch_completed.CopyFrom(
                progress_pb2.EpochCompleted(
                    epoch=event.epoch,
                    metrics=event.metrics,
                    learning_rate=event.learning_rate,
                    is_best=event.is_best,
                    seconds=event.seconds,
                )
            )
        case CheckpointDelayed():
            message.checkpoint_delayed.CopyFrom(
                progress_pb2.CheckpointDelayed(
                    trigger=CheckpointTrigger.CHECKPOINT_TRIGGER_PERIODIC,
                    step=event.step,
                    reason="UPLOAD_IN_FLIGHT",
                    message=event.message,
                )
            )
        case StepSkipped(text):
            message.warning.CopyFrom(progress_pb2.Warning(reason="STEP_SKIPPED", message=text))
        case RolledBack(_, text):
            message.warning.CopyFrom(progress_pb2.Warning(reason="ROLLED_BACK", message=text))
    return message


def _position_message(position: Position) -> progress_pb2.TrainingPosition:
    return progress_pb2.TrainingPosition(
        epoch=position.epoch,
        total_epochs=position.total_epochs,
        batch=position.batch,
        batches_per_epoch=position.batches_per_epoch,
        step=position.step,
        total_steps=position.total_steps,
        fraction=min(1.0, position.step / position.total_steps) if position.total_steps else 0,
        eta_seconds=position.eta_seconds,
    )
