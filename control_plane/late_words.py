"""What an attempt goes on to say after its end: refused, and kept as one note in the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from control_plane.database import attempts, events
from control_plane.database.attempts import AttemptRecord
from control_plane.transitions import note_event
from everstep.trainer.v1.trainer_pb2 import CancelTrainingRequest, WatchTrainingRequest
from everstep.training.v1.progress_pb2 import TrainingProgress

if TYPE_CHECKING:
    from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

#: Ends that others have brought about: it was told to stop, or its trainer died.
_STOPPED: Final = ("cancelled", "failed")


async def stop_and_hear(
    stub: TrainerServiceAsyncStub, attempt: AttemptRecord, seconds: float
) -> list[TrainingProgress]:
    """Stops an attempt that is over, and takes the words that came too late.

    Raises:
        grpc.aio.AioRpcError: NOT_FOUND when the trainer keeps nothing of it; DEADLINE_EXCEEDED when
            it has not stopped in so many seconds.
    """
    operation_id, number = attempt.operation_id, attempt.number
    await stub.CancelTraining(
        CancelTrainingRequest(operation_id=operation_id, attempt=number, discard=True),
        timeout=seconds,
    )
    call = stub.WatchTraining(
        WatchTrainingRequest(operation_id=operation_id, attempt=number, after_index=attempt.cursor),
        timeout=seconds,
    )
    try:
        return [word async for word in call if word.index]
    finally:
        call.cancel()


def note_late_words(
    connection: Connection, operation_id: str, number: int, words: Sequence[TrainingProgress]
) -> bool:
    """Notes, once for each attempt, what was refused of it; that it stopped as asked is no news.

    Returns:
        Whether a note was written.
    """
    attempt = attempts.find(connection, operation_id, number)
    late = list(words)
    if late and late[-1].WhichOneof("event") in _STOPPED:
        late.pop()
    if attempt is None or attempt.late_noted or not late:
        return False
    attempts.set_values(connection, operation_id, number, late_noted=True)
    message = (
        f"trainer {attempt.trainer_id} went on with attempt {number} after its end: its words from "
        f"index {late[0].index} on are refused{_described(late)}"
    )
    events.append(connection, operation_id, [note_event("LATE_EVENTS", message, number)])
    return True


def _described(late: Sequence[TrainingProgress]) -> str:
    """What more than progress was among them."""
    refused = [
        f"a checkpoint at step {word.checkpoint_committed.checkpoint.step}"
        for word in late
        if word.HasField("checkpoint_committed")
    ]
    refused += ["its completion" for word in late if word.HasField("completed")]
    return f", with {', '.join(refused)}" if refused else ""
