"""What is heard of an attempt that runs: dead, unreachable and stalled are three things."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlalchemy import Connection

from control_plane import times
from control_plane.database import attempts, events, operations
from control_plane.database.attempts import AttemptRecord
from control_plane.database.trainers import TrainerRecord
from control_plane.transitions import note_event
from everstep.control.v1 import operations_pb2

#: A training that has begun to train, and says nothing for so many leases, is shown as stalled.
STALLED_LEASES: Final = 4
#: A trainer whose stream is broken for so many leases, while its heartbeat comes, is shown as
#: unreachable.
UNREACHABLE_LEASES: Final = 1


class Liveness(StrEnum):
    """The three that a person must be able to tell apart, and all well."""

    HEARD = "HEARD"
    STALLED = "STALLED"
    UNREACHABLE = "UNREACHABLE"
    DEAD = "DEAD"

    @property
    def message(self) -> operations_pb2.LivenessState.ValueType:
        """The state in the contract's words."""
        return operations_pb2.LivenessState.Value(f"LIVENESS_STATE_{self.value}")


_SENTENCES: Final = {
    Liveness.HEARD: "",
    Liveness.STALLED: (
        "trainer {trainer} is there, and its training says nothing: a long step or evaluation, or "
        "a hang; the trainer itself ends one that hangs and goes on from its newest snapshot"
    ),
    Liveness.UNREACHABLE: (
        "trainer {trainer} says that it is there, and cannot be reached at {address}; its training "
        "goes on, and what it says meanwhile comes when it can be reached; check the network and "
        "EVERSTEP_ADVERTISE"
    ),
    Liveness.DEAD: (
        "trainer {trainer} is not heard any more; its attempt is closed, and the next one goes on "
        "from the newest checkpoint"
    ),
}


def store_liveness(
    connection: Connection, operation_id: str, number: int, liveness: Liveness, seconds: float
) -> bool:
    """Stores what its follower hears of an attempt; the log says when its trainer is unreachable.

    Args:
        connection: Of the transaction.
        operation_id: Of the attempt.
        number: Of the attempt.
        liveness: Not DEAD: that ends an attempt.
        seconds: For how long it has been so.

    Returns:
        Whether the log has a new entry.
    """
    operation = operations.lock(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None or attempt is None or attempt.ending or attempt.liveness == liveness:
        return False
    attempts.set_values(
        connection,
        operation_id,
        number,
        liveness=liveness.value,
        liveness_time=times.after(-seconds),
    )
    # Whoever looks at lists sees by this time what has changed.
    operations.set_values(connection, operation_id, update_time=times.now())
    if liveness is Liveness.UNREACHABLE:
        message = f"for {seconds:.0f} s: trainer {attempt.trainer_id} cannot be reached, though it "
        message += "says that it is there; its training goes on"
        note = note_event("TRAINER_UNREACHABLE", message, number)
    elif attempt.liveness == Liveness.UNREACHABLE:
        message = f"trainer {attempt.trainer_id} can be reached again; nothing of it was lost"
        note = note_event("TRAINER_REACHED", message, number)
    else:
        return False
    events.append(connection, operation_id, [note])
    return True


def liveness_message(
    attempt: AttemptRecord, trainer: TrainerRecord | None
) -> operations_pb2.Liveness:
    """What is shown of an open attempt."""
    liveness, since = Liveness(attempt.liveness), attempt.liveness_time
    if trainer is not None and not trainer.alive(times.now()):
        liveness, since = Liveness.DEAD, trainer.lease_expire_time
    message = operations_pb2.Liveness(
        state=liveness.message,
        message=_SENTENCES[liveness].format(
            trainer=attempt.trainer_id, address="" if trainer is None else trainer.address
        ),
    )
    if liveness is not Liveness.HEARD and since is not None:
        message.since.CopyFrom(times.timestamp(since))
    return message
