"""The last word of an attempt: Completed, Failed or Cancelled."""

from __future__ import annotations

from typing import Final

from google.protobuf import json_format

from everstep.errors import EverstepError, Reason
from everstep.training.v1 import progress_pb2
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.progress_pb2 import (
    TrainingError,
    TrainingPosition,
    TrainingProgress,
    TrainingResult,
)
from trainer_service.child.pipe import Failed, Finished

#: Another attempt may go better: the training itself is not at fault.
RESTARTABLE: Final = frozenset(
    {
        Reason.DRAINING,
        Reason.TRAINER_RESTARTED,
        Reason.TRAINING_PROCESS_DIED,
        Reason.TRAINING_HUNG,
        Reason.STORE_UNAVAILABLE,
        Reason.CHECKPOINT_CORRUPT,
    }
)


def last_word(
    outcome: Finished | Failed,
    checkpoint: Checkpoint | None,
    error: EverstepError | None,
    position: TrainingPosition,
) -> TrainingProgress:
    """What is said of a training that ended.

    Args:
        outcome: The training process's last word.
        checkpoint: The newest of the attempt.
        error: Why the training's last state is not stored; None when it is.
        position: How far the training was.
    """
    if isinstance(outcome, Failed):
        return failed_word(outcome, checkpoint)
    if outcome.outcome == "cancelled":
        return TrainingProgress(cancelled=progress_pb2.Cancelled(checkpoint=checkpoint))
    if outcome.outcome == "handed_over":
        draining = EverstepError(
            Reason.DRAINING, "handed over, as asked; another trainer goes on from the checkpoint"
        )
        return failed(draining, checkpoint)
    if error is not None or checkpoint is None:
        without = EverstepError(Reason.INTERNAL, "the training ended without a checkpoint")
        return failed(error or without, checkpoint)
    result = TrainingResult(checkpoint=checkpoint, digests=checkpoint.digests)
    json_format.ParseDict(outcome.result, result)
    word = TrainingProgress(completed=progress_pb2.Completed(result=result))
    word.position.CopyFrom(position)
    word.position.fraction = 1.0
    word.position.eta_seconds = 0.0
    return word


def replaced_word(by_attempt: int) -> TrainingProgress:
    """The last word of an attempt that a newer one has replaced."""
    return failed(
        EverstepError(
            Reason.ATTEMPT_REPLACED,
            f"attempt {by_attempt} has replaced this one; watch that one",
        )
    )


def failed(error: EverstepError, checkpoint: Checkpoint | None = None) -> TrainingProgress:
    """The last word of an attempt that ended with an error."""
    return failed_word(
        Failed(
            error.reason,
            error.message,
            tuple((violation.field, violation.description) for violation in error.violations),
        ),
        checkpoint,
    )


def failed_word(error: Failed, checkpoint: Checkpoint | None) -> TrainingProgress:
    """The last word of an attempt whose training process ended with an error."""
    return TrainingProgress(
        failed=progress_pb2.Failed(
            error=TrainingError(
                reason=error.reason,
                message=error.message,
                violations=[
                    progress_pb2.FieldViolation(field=field, description=description)
                    for field, description in error.violations
                ],
                detail=error.detail,
                restartable=error.reason in RESTARTABLE,
            ),
            checkpoint=checkpoint,
        )
    )
