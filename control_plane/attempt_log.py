"""What a trainer says of an attempt, stored: events, cursor and their effects at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection

from control_plane import times
from control_plane.attempt_ends import end_by_error, end_by_word
from control_plane.database import attempts, checkpoints, events, operations
from control_plane.database.attempts import AttemptRecord
from control_plane.database.checkpoints import CheckpointRecord
from control_plane.database.operations import OperationRecord
from control_plane.late_words import note_late_words
from control_plane.operation_metrics import merged_metrics, newest_metrics, step_metrics
from control_plane.states import ATTEMPT_STATES
from everstep.control.v1.operations_pb2 import OperationEvent
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.progress_pb2 import TrainingPosition, TrainingProgress

LAST_WORDS: Final = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True)
class Stored:
    """How far an attempt is after its words were stored."""

    #: The index of the newest event in the log.
    cursor: int
    #: The attempt is over: nothing more is taken from it.
    over: bool
    #: A checkpoint was registered.
    committed: bool = False
    #: How far the whole operation is, from 0 to 1; None where that is not known here.
    fraction: float | None = None


def store_words(
    connection: Connection, operation_id: str, number: int, words: Sequence[TrainingProgress]
) -> Stored:
    """Stores what is new among an attempt's durable events.

    Events that are in the log already are passed over. Those of an attempt that is over are
    refused, and the log says so once.

    Raises:
        EverstepError: INTERNAL when an index is left out, or the events are another attempt's.
    """
    operation = operations.lock(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None or attempt is None:
        return Stored(0, over=True)
    fresh = [word for word in words if word.index > attempt.cursor]
    if attempt.ending or operation.attempt != number:
        note_late_words(connection, operation_id, number, fresh)
        return Stored(attempt.cursor, over=True)
    if not fresh:
        return Stored(attempt.cursor, over=False)
    _check_words(attempt, fresh)
    return _store_fresh(connection, operation, attempt, fresh)


def store_position(
    connection: Connection, operation_id: str, number: int, word: TrainingProgress
) -> float:
    """Remembers how far a transient event says that the attempt is.

    Returns:
        How far the whole operation is, from 0 to 1.
    """
    operation = operations.lock(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None:
        return 0.0
    position = TrainingPosition.FromString(operation.position)
    if attempt is None or attempt.ending or operation.attempt != number:
        return position.fraction
    _advance(position, word.position)
    operations.set_values(
        connection,
        operation_id,
        position=position.SerializeToString(),
        at_risk=_at_risk(operation, word),
        metrics=merged_metrics(operation.metrics, step_metrics(word)),
        update_time=times.now(),
    )
    attempts.set_values(
        connection, operation_id, number, last_step=max(attempt.last_step, word.position.step)
    )
    return position.fraction


def store_end(connection: Connection, operation_id: str, number: int, error: EverstepError) -> bool:
    """Ends an attempt without a word of its own; False when it was over already."""
    operation = operations.lock(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None or attempt is None or attempt.ending:
        return False
    if operation.attempt != number or operation.state not in ATTEMPT_STATES:
        return False
    end_by_error(connection, operation, attempt, error)
    return True


def _check_words(attempt: AttemptRecord, words: Sequence[TrainingProgress]) -> None:
    for index, word in enumerate(words, start=attempt.cursor + 1):
        if word.index != index:
            raise EverstepError(
                Reason.INTERNAL,
                f"trainer {attempt.trainer_id} left out event {index} of attempt {attempt.number}",
            )
        if (word.operation_id, word.attempt) != (attempt.operation_id, attempt.number):
            raise EverstepError(
                Reason.INTERNAL,
                f"trainer {attempt.trainer_id} sent an event of operation {word.operation_id}, "
                f"attempt {word.attempt}, for attempt {attempt.number} of {attempt.operation_id}",
            )


def _store_fresh(
    connection: Connection,
    operation: OperationRecord,
    attempt: AttemptRecord,
    words: Sequence[TrainingProgress],
) -> Stored:
    last_word = next((word for word in words if word.WhichOneof("event") in LAST_WORDS), None)
    if last_word is not None:
        words = [word for word in words if word.index <= last_word.index]
    entries, position = _entries(operation, words)
    last_sequence = events.append(connection, operation.operation_id, entries)
    values: dict[str, Any] = {
        "position": position.SerializeToString(),
        "at_risk": _at_risk(operation, words[-1]),
        "metrics": merged_metrics(operation.metrics, newest_metrics(words)),
        "update_time": times.now(),
    }
    process_id = attempt.process_id
    committed = False
    for sequence, word in enumerate(words, start=last_sequence - len(words) + 1):
        if word.HasField("phase_changed"):
            process_id = word.phase_changed.process_id
        checkpoint = _checkpoint_of(word)
        if checkpoint is not None and _register(connection, operation, sequence, checkpoint):
            committed = True
            # A step forward that stays: the losses before it no longer count.
            values |= {"losses": 0, "resume_checkpoint_id": None, "resume_named": False}
    operations.set_values(connection, operation.operation_id, **values)
    last_step = max([attempt.last_step, *(_step(word) for word in words)])
    attempts.set_values(
        connection,
        attempt.operation_id,
        attempt.number,
        cursor=words[-1].index,
        last_step=last_step,
        process_id=process_id,
    )
    if last_word is not None:
        operation = replace(
            operation,
            losses=values.get("losses", operation.losses),
            resume_named=values.get("resume_named", operation.resume_named),
            position=values["position"],
        )
        end_by_word(connection, operation, replace(attempt, last_step=last_step), last_word)
    return Stored(
        words[-1].index,
        over=last_word is not None,
        committed=committed,
        fraction=position.fraction,
    )


def _entries(
    operation: OperationRecord, words: Sequence[TrainingProgress]
) -> tuple[list[OperationEvent], TrainingPosition]:
    """The log's entries for the words, and the position after them."""
    position = TrainingPosition.FromString(operation.position)
    entries = []
    for word in words:
        entry = OperationEvent(time=word.time, progress=word)
        _advance(position, word.position)
        entry.progress.position.fraction = position.fraction
        entries.append(entry)
    return entries, position


def _advance(position: TrainingPosition, newer: TrainingPosition) -> None:
    # An attempt that begins again at a checkpoint repeats work: the whole never goes back.
    fraction = max(position.fraction, _finite(newer.fraction))
    # An attempt that restores its state does not know yet where it is.
    if newer.total_steps or newer.step:
        position.CopyFrom(newer)
    position.fraction = fraction


def _at_risk(operation: OperationRecord, word: TrainingProgress) -> bytes | None:
    return word.at_risk.SerializeToString() if word.HasField("at_risk") else operation.at_risk


def _finite(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0


def _step(word: TrainingProgress) -> int:
    """How far a word says that its attempt is: a step is checkpointed before it is reported."""
    checkpoint = _checkpoint_of(word)
    return max(word.position.step, 0 if checkpoint is None else checkpoint.step)


def _checkpoint_of(word: TrainingProgress) -> Checkpoint | None:
    """The checkpoint that a word speaks of; a last word names one that was mostly said before."""
    if word.HasField("checkpoint_committed"):
        return word.checkpoint_committed.checkpoint
    if word.HasField("completed") and word.completed.result.HasField("checkpoint"):
        return word.completed.result.checkpoint
    if word.HasField("failed") and word.failed.HasField("checkpoint"):
        return word.failed.checkpoint
    if word.HasField("cancelled") and word.cancelled.HasField("checkpoint"):
        return word.cancelled.checkpoint
    return None


def _register(
    connection: Connection, operation: OperationRecord, sequence: int, checkpoint: Checkpoint
) -> bool:
    reference = checkpoint.reference
    if not reference.checkpoint_id or checkpoint.operation_id != operation.operation_id:
        return False
    if checkpoints.find(connection, reference.checkpoint_id) is not None:
        return False
    has_value = checkpoint.HasField("monitor_value") and not math.isnan(checkpoint.monitor_value)
    checkpoints.add(
        connection,
        CheckpointRecord(
            checkpoint_id=reference.checkpoint_id,
            operation_id=operation.operation_id,
            attempt=checkpoint.attempt,
            sequence=sequence,
            epoch=checkpoint.epoch,
            step=checkpoint.step,
            create_time=checkpoint.create_time.ToMicroseconds() or times.now(),
            manifest_key=reference.manifest_key,
            manifest_digest=reference.manifest_digest,
            logical_bytes=checkpoint.logical_bytes,
            monitor=checkpoint.monitor,
            monitor_value=checkpoint.monitor_value if has_value else None,
            pinned=False,
            damaged=False,
            payload=checkpoint.SerializeToString(),
        ),
    )
    return True
