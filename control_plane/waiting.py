"""What an operation in the queue waits for: told when asked, from the trainers there are."""

from __future__ import annotations

from typing import Final

from control_plane.database.operations import OperationRecord
from control_plane.database.trainers import TrainerRecord
from control_plane.placement import Demand, TrainerPool

#: Trainers that are named; of more, how many there are.
NAMED: Final = 5


def waiting_for(
    operation: OperationRecord, environment: bytes | None, pool: TrainerPool, now: int
) -> str:
    """Why an operation in the queue does not run, in one line.

    Args:
        operation: A PENDING one.
        environment: Of its newest attempt; None before the first.
        pool: The trainers.
        now: In microseconds since 1970.
    """
    if operation.due_time > now:
        return operation.waiting_for
    demand = Demand.of(operation.trainer_labels, environment)
    candidates = pool.candidates(demand)
    if not candidates:
        return _none(demand, pool, now)
    if any(pool.has_room(trainer) for trainer in candidates):
        # It is about to be given to one; or it was, and the trainer did not take it.
        return operation.waiting_for or "a trainer"
    are = "is" if len(candidates) == 1 else "are"
    return f"room on a trainer: {_names(candidates)} {are} full"


def _none(demand: Demand, pool: TrainerPool, now: int) -> str:
    if not demand.labels:
        return "a trainer: none is registered and takes work; start one, or undo its draining"
    wanted = ", ".join(f"{name}={value}" for name, value in sorted(demand.labels.items()))
    having = [trainer for trainer in pool.known if pool.has_labels(trainer, demand)]
    if not having:
        return f"a trainer with {wanted}: none is registered; start one with EVERSTEP_LABELS"
    alive = [trainer for trainer in having if trainer.alive(now)]
    if alive:
        are = "takes" if len(alive) == 1 else "take"
        return f"a trainer with {wanted}: {_names(alive)} {are} no work; undo the draining"
    are = "is" if len(having) == 1 else "are"
    return f"a trainer with {wanted}: {_names(having)} {are} not heard any more"


def _names(trainers: list[TrainerRecord]) -> str:
    names = ", ".join(trainer.trainer_id for trainer in trainers[:NAMED])
    return names if len(trainers) <= NAMED else f"{names} and {len(trainers) - NAMED} more"
