"""Which operations run next, where, and from which checkpoint: a round, in one transaction."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sqlalchemy import Connection

from control_plane import moves, times
from control_plane.attempt_ends import AttemptEnd
from control_plane.beginnings import newest_to_try, passed_over
from control_plane.database import attempts, checkpoints, queue
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from control_plane.database.trainers import TrainerRecord
from control_plane.placement import Demand, TrainerPool, demand_digest, read_pool
from control_plane.resumption import reference_of
from control_plane.states import Change, State
from control_plane.transitions import change_state
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.strategy_pb2 import StrategyOverrides

#: Attempts begun in one transaction: others who write wait for it.
AT_A_TIME: Final = 20
#: Attempts of an operation that are looked at for the trainers that lost it.
LOOK_BACK: Final = 20
_LOST: Final = (AttemptEnd.LOST, AttemptEnd.REFUSED)


@dataclass(frozen=True)
class Assigned:
    """An attempt that was begun."""

    operation_id: str
    attempt: int


@dataclass(frozen=True)
class Round:
    """What a round decided."""

    begun: list[Assigned]
    #: Operations that are to be handed over from now on.
    moving: list[str]


@dataclass(frozen=True)
class Beginning:
    """Where an attempt begins."""

    checkpoint: CheckpointReference | None
    first_step: int
    overrides: StrategyOverrides
    #: The newer checkpoints that cannot be read, for the log.
    passed_over: str = ""


def assign_round(
    connection: Connection, owner: str, lease_seconds: float, full: frozenset[str]
) -> Round:
    """Gives operations to trainers, as new attempts: in the queue's order those that can run now.

    Room goes to what drained trainers run first, then to what they handed over, then to the queue.
    What it costs goes with the trainers and with what is given, and hardly with the queue: of
    operations that ask the same of a trainer, none is looked at when none of them can run.

    Args:
        connection: Of the transaction.
        owner: The control plane that will follow the attempts.
        lease_seconds: How long it says so at first.
        full: Trainers that have no room though this database thinks so.

    Returns:
        What was begun, about `AT_A_TIME` at most; nothing when nothing can be given now.
    """
    now = times.now()
    if not moves.wanted(connection) and not queue.any_due(connection, State.PENDING, now):
        return Round([], [])
    pool = read_pool(connection, full, lock=True)
    moving = moves.plan_moves(connection, pool)
    beginning = _Beginner(connection, pool, owner, times.after(lease_seconds))
    _begin_moved(connection, pool, beginning)
    while pool.any_room() and len(beginning.begun) < AT_A_TIME:
        if not _begin_next(connection, pool, beginning, now):
            break
    return Round(beginning.begun, moving)


class _Beginner:
    """Begins attempts, and remembers which."""

    def __init__(
        self, connection: Connection, pool: TrainerPool, owner: str, lease_time: int
    ) -> None:
        self._connection = connection
        self._pool = pool
        self._owner = owner
        self._lease_time = lease_time
        self.begun: list[Assigned] = []

    def begin(self, operation: OperationRecord, trainer: TrainerRecord) -> None:
        """One more training is on the trainer."""
        number = _begin_attempt(self._connection, operation, trainer, self._owner, self._lease_time)
        if operation.moving_to:
            self._pool.give_back(operation.moving_to)
        self._pool.take(trainer.trainer_id)
        self.begun.append(Assigned(operation.operation_id, number))


def _begin_moved(connection: Connection, pool: TrainerPool, beginning: _Beginner) -> None:
    """Those that were handed over go where room is kept for them; it is theirs before all others.

    While that trainer takes no work, they are as all others are in the queue.
    """
    available = {trainer.trainer_id: trainer for trainer in pool.available}
    kept = queue.moving(connection, [State.PENDING])
    for operation in queue.lock(connection, State.PENDING, [each.operation_id for each in kept]):
        trainer = available.get(operation.moving_to)
        if trainer is not None and not pool.refuses(trainer):
            beginning.begin(operation, trainer)


def _begin_next(connection: Connection, pool: TrainerPool, beginning: _Beginner, now: int) -> bool:
    """Begins the first that can run, as many as there is room for; False when there are none."""
    runnable = dict(
        islice(
            (
                (record.demand, demand)
                for record in queue.demands(connection, State.PENDING, now)
                if _has_room(pool, demand := Demand.of(record.trainer_labels, record.environment))
            ),
            AT_A_TIME,
        )
    )
    if not runnable:
        return False
    before = len(beginning.begun)
    ids = queue.next_ids(connection, State.PENDING, now, list(runnable), AT_A_TIME - before)
    for operation in queue.lock(connection, State.PENDING, ids):
        trainer = _choose(connection, operation, runnable[operation.demand], pool)
        # Its trainers may have been filled by those before it.
        if trainer is not None:
            beginning.begin(operation, trainer)
    return len(beginning.begun) > before


def _has_room(pool: TrainerPool, demand: Demand) -> bool:
    return any(pool.has_room(trainer) for trainer in pool.candidates(demand))


def _choose(
    connection: Connection, operation: OperationRecord, demand: Demand, pool: TrainerPool
) -> TrainerRecord | None:
    """The one with most room, of those that lost the operation least often."""
    free = [trainer for trainer in pool.candidates(demand) if pool.has_room(trainer)]
    if not free:
        return None
    lost = _losses_by_trainer(connection, operation)
    return max(
        free,
        key=lambda trainer: (
            -lost[trainer.trainer_id],
            pool.free(trainer),
            trainer.trainer_id,
        ),
    )


def _losses_by_trainer(connection: Connection, operation: OperationRecord) -> Counter[str]:
    """How often each trainer lost or refused the operation since an attempt ended otherwise."""
    lost: Counter[str] = Counter()
    if operation.attempt:
        for attempt in attempts.newest(connection, operation.operation_id, LOOK_BACK):
            if attempt.ending not in _LOST:
                break
            lost[attempt.trainer_id] += 1
    return lost


def _begin_attempt(
    connection: Connection,
    operation: OperationRecord,
    trainer: TrainerRecord,
    owner: str,
    lease_time: int,
) -> int:
    """The number of the attempt."""
    number = operation.attempt + 1
    beginning = _beginning(connection, operation)
    origin = (
        "from the beginning"
        if beginning.checkpoint is None
        else f"from checkpoint {beginning.checkpoint.checkpoint_id}{beginning.passed_over}"
    )
    assigned = change_state(
        connection,
        operation,
        Change.DISPATCHED,
        f"attempt {number} on trainer {trainer.trainer_id}, {origin}",
        attempt=number,
        values={
            "owner": owner,
            "owner_lease_time": lease_time,
            "demand": demand_digest(operation.trainer_labels, trainer.environment),
        },
    )
    assert assigned, "the operation was locked as PENDING"
    attempts.add(
        connection,
        AttemptRecord(
            operation_id=operation.operation_id,
            number=number,
            trainer_id=trainer.trainer_id,
            environment=trainer.environment,
            start_time=times.now(),
            end_time=None,
            first_step=beginning.first_step,
            last_step=0,
            ending="",
            end_reason="",
            process_id=0,
            cursor=0,
            checkpoint=(
                None if beginning.checkpoint is None else beginning.checkpoint.SerializeToString()
            ),
            overrides=beginning.overrides.SerializeToString(),
            forgotten=False,
            late_noted=False,
        ),
    )
    return number


def _beginning(connection: Connection, operation: OperationRecord) -> Beginning:
    """The checkpoint that the resume names, else the newest, else the one forked from."""
    overrides = StrategyOverrides.FromString(operation.overrides or b"")
    checkpoint = None
    if operation.resume_checkpoint_id is not None:
        checkpoint = checkpoints.find(connection, operation.resume_checkpoint_id)
    if checkpoint is None:
        checkpoint = newest_to_try(connection, operation.operation_id)
    if checkpoint is not None:
        if checkpoint.attempt > operation.resumed_after:
            # The learning rate was set when this resume began, and is in the checkpoint since; the
            # environment that was allowed is the checkpoint's.
            overrides.ClearField("learning_rate")
            overrides.ClearField("allow_inexact")
        skipped = "" if operation.resume_named else passed_over(connection, operation, checkpoint)
        return Beginning(reference_of(checkpoint), checkpoint.step + 1, overrides, skipped)
    if operation.from_checkpoint is not None:
        forked_from = CheckpointReference.FromString(operation.from_checkpoint)
        origin = checkpoints.find(connection, forked_from.checkpoint_id)
        return Beginning(forked_from, 1 if origin is None else origin.step + 1, overrides)
    return Beginning(None, 1, overrides)
