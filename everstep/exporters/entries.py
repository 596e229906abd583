"""What an event says to a plot: numbers at steps, a line of text, a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from everstep.sdk.events import (
    CheckpointCommitted,
    CheckpointDelayed,
    Completed,
    EpochCompleted,
    Event,
    Failed,
    Note,
    StateChanged,
    StepMetrics,
    TrainingRestarted,
    TrainingWarning,
)
from everstep.sdk.operations import OperationState

#: The first step of an attempt, by its number.
FirstStep = Callable[[int], int]


@dataclass(frozen=True)
class Scalar:
    """One number of a curve."""

    #: As in `epoch/val_loss`.
    name: str
    value: float
    #: Optimizer steps done.
    step: int
    #: Of the machine, not of the training: a step that is trained again gives another one.
    measured: bool = False


@dataclass(frozen=True)
class Text:
    """One line for people."""

    #: state, restart, warning, note or failure.
    kind: str
    message: str


@dataclass(frozen=True)
class Entry:
    """One durable event."""

    sequence: int
    time: datetime
    scalars: tuple[Scalar, ...] = ()
    text: Text | None = None
    #: Training goes on with this step, which may have been trained before: what is there of it and
    #: of later ones is of a line that was left.
    goes_on_with: int | None = None
    #: The operation's from here on.
    state: OperationState | None = None


def entry_of(event: Event, first_step: FirstStep) -> Entry:
    """The entry for a durable event; most kinds have a part of it."""
    sequence, time = event.sequence, event.time
    match event:
        case StepMetrics() | EpochCompleted() | CheckpointCommitted() | Completed():
            return Entry(sequence, time, scalars=_scalars(event))
        case StateChanged(to, _, reason, message):
            text = Text("state", _sentence(to.value, reason, message))
            again = to is OperationState.RUNNING and event.attempt > 1
            goes_on_with = first_step(event.attempt) if again else None
            return Entry(sequence, time, text=text, goes_on_with=goes_on_with, state=to)
        case TrainingRestarted(cause, from_step, source):
            message = f"the training process died ({cause}); going on after step {from_step} from "
            return Entry(
                sequence, time, text=Text("restart", message + source), goes_on_with=from_step + 1
            )
        case TrainingWarning(reason, message):
            rolled_back = reason == "ROLLED_BACK" and event.position is not None
            goes_on_with = _step(event) + 1 if rolled_back else None
            text = Text("warning", _sentence(reason, message))
            return Entry(sequence, time, text=text, goes_on_with=goes_on_with)
        case CheckpointDelayed(_, _, reason, message):
            return Entry(sequence, time, text=Text("warning", _sentence(reason, message)))
        case Note(reason, message):
            return Entry(sequence, time, text=Text("note", _sentence(reason, message)))
        case Failed(failure):
            message = _sentence(failure.reason, failure.message)
            return Entry(sequence, time, text=Text("failure", message))
    return Entry(sequence, time)


def _scalars(event: Event) -> tuple[Scalar, ...]:
    step = _step(event)
    match event:
        case StepMetrics(loss, learning_rate, examples_per_second, gradient_norm):
            found = [
                Scalar("step/loss", loss, step),
                Scalar("step/learning_rate", learning_rate, step),
                Scalar("step/examples_per_second", examples_per_second, step, measured=True),
            ]
            if gradient_norm is not None:
                found.append(Scalar("step/gradient_norm", gradient_norm, step))
            return tuple(found)
        case EpochCompleted(epoch, metrics, learning_rate, _, seconds):
            return (
                *(Scalar(f"epoch/{name}", value, step) for name, value in sorted(metrics.items())),
                Scalar("epoch/number", epoch + 1, step),
                Scalar("epoch/learning_rate", learning_rate, step),
                Scalar("epoch/seconds", seconds, step, measured=True),
            )
        case CheckpointCommitted(checkpoint, stall_seconds, upload_seconds):
            named = {
                "stall_seconds": stall_seconds,
                "upload_seconds": upload_seconds,
                "logical_bytes": checkpoint.logical_bytes,
                "uploaded_bytes": checkpoint.uploaded_bytes,
            }
            return tuple(
                Scalar(f"checkpoint/{name}", value, checkpoint.step, measured=True)
                for name, value in named.items()
            )
        case Completed(result):
            return tuple(
                Scalar(f"result/{name}", value, result.steps)
                for name, value in sorted(result.metrics.items())
            )
    return ()


def _step(event: Event) -> int:
    return 0 if event.position is None else event.position.step


def _sentence(*parts: str) -> str:
    return ": ".join(part for part in parts if part)
