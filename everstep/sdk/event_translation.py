"""The entries of a log as the events that users see."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from everstep.control.v1.operations_pb2 import OperationEvent
from everstep.sdk import events, translation
from everstep.sdk.events import Event
from everstep.sdk.operations import Position, WorkAtRisk
from everstep.training.v1 import progress_pb2
from everstep.training.v1.progress_pb2 import TrainingProgress


class _Common(TypedDict):
    operation_id: str
    sequence: int
    time: datetime
    attempt: int


class _OfTraining(_Common):
    position: Position
    at_risk: WorkAtRisk | None


def event(message: OperationEvent) -> Event:
    """One event."""
    match message.WhichOneof("event"):
        case "state_changed":
            changed = message.state_changed
            return events.StateChanged(
                to=translation.state(changed.to),
                before=translation.state(getattr(changed, "from")),
                reason=changed.reason,
                message=changed.message,
                **_common(message, changed.attempt),
            )
        case "note":
            note = message.note
            return events.Note(note.reason, note.message, **_common(message, note.attempt))
        case "progress":
            return _progress(message.progress, _of_training(message))
    return events.UnknownEvent(**_common(message, 0))


def _progress(progress: TrainingProgress, common: _OfTraining) -> Event:
    match progress.WhichOneof("event"):
        case "phase_changed":
            changed = progress.phase_changed
            phase = translation.phase(changed.phase)
            return events.PhaseChanged(phase, changed.process_id, **common)
        case "phase_progress":
            moved = progress.phase_progress
            phase = translation.phase(moved.phase)
            return events.PhaseProgress(phase, moved.done_bytes, moved.total_bytes, **common)
        case "step_metrics":
            return _step_metrics(progress.step_metrics, common)
        case "epoch_completed":
            return _epoch_completed(progress.epoch_completed, common)
        case "checkpoint_committed" | "checkpoint_delayed":
            return _checkpoint(progress, common)
        case "training_restarted":
            return _restarted(progress.training_restarted, common)
        case "warning":
            warning = progress.warning
            return events.TrainingWarning(warning.reason, warning.message, warning.detail, **common)
        case "completed" | "failed" | "cancelled":
            return _last_word(progress, common)
    return events.UnknownEvent(**common)


def _step_metrics(step: progress_pb2.StepMetrics, common: _OfTraining) -> Event:
    return events.StepMetrics(
        loss=step.loss,
        learning_rate=step.learning_rate,
        examples_per_second=step.examples_per_second,
        gradient_norm=step.gradient_norm if step.HasField("gradient_norm") else None,
        **common,
    )


def _epoch_completed(done: progress_pb2.EpochCompleted, common: _OfTraining) -> Event:
    return events.EpochCompleted(
        epoch=done.epoch,
        metrics=dict(done.metrics),
        learning_rate=done.learning_rate,
        is_best=done.is_best,
        seconds=done.seconds,
        **common,
    )


def _restarted(restarted: progress_pb2.TrainingRestarted, common: _OfTraining) -> Event:
    return events.TrainingRestarted(
        restarted.cause, restarted.from_step, restarted.source, restarted.restart, **common
    )


def _checkpoint(progress: TrainingProgress, common: _OfTraining) -> Event:
    if progress.HasField("checkpoint_delayed"):
        delayed = progress.checkpoint_delayed
        trigger = translation.trigger(delayed.trigger)
        return events.CheckpointDelayed(
            trigger, delayed.step, delayed.reason, delayed.message, **common
        )
    committed = progress.checkpoint_committed
    return events.CheckpointCommitted(
        translation.checkpoint(committed.checkpoint),
        committed.stall_seconds,
        committed.upload_seconds,
        **common,
    )


def _last_word(progress: TrainingProgress, common: _OfTraining) -> Event:
    if progress.HasField("completed"):
        return events.Completed(translation.training_result(progress.completed.result), **common)
    said = progress.failed if progress.HasField("failed") else progress.cancelled
    saved = (
        translation.checkpoint(said.checkpoint) if said.checkpoint.reference.checkpoint_id else None
    )
    if progress.HasField("failed"):
        return events.Failed(translation.failure(progress.failed.error), saved, **common)
    return events.Cancelled(saved, **common)


def _common(message: OperationEvent, attempt: int) -> _Common:
    """What all events have."""
    return {
        "operation_id": message.operation_id,
        "sequence": message.sequence,
        "time": translation.moment(message.time),
        "attempt": attempt,
    }


def _of_training(message: OperationEvent) -> _OfTraining:
    """What all events of a training have."""
    progress = message.progress
    at_risk = translation.work_at_risk(progress.at_risk) if progress.HasField("at_risk") else None
    return {
        **_common(message, progress.attempt),
        "position": translation.position(progress.position),
        "at_risk": at_risk,
    }
