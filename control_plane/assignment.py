"""Which operation runs next, where, and from which checkpoint: decided in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from control_plane import times
from control_plane.beginnings import newest_to_try, passed_over
from control_plane.database import attempts, checkpoints, operations, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from control_plane.database.trainers import TrainerRecord
from control_plane.resumption import reference_of
from control_plane.states import Change, State
from control_plane.transitions import change_state
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.strategy_pb2 import StrategyOverrides

#: Operations looked at in one round.
ROUND: Final = 200


@dataclass(frozen=True)
class Beginning:
    """Where an attempt begins."""

    checkpoint: CheckpointReference | None
    first_step: int
    overrides: StrategyOverrides
    #: The newer checkpoints that cannot be read, for the log.
    passed_over: str = ""


@dataclass(frozen=True)
class Trainers:
    """The trainers as one round finds them."""

    #: Those that may be given work.
    available: Sequence[TrainerRecord]
    #: Trainings on each.
    load: Mapping[str, int]
    #: Those that said that they are full, whatever the load here is.
    full: frozenset[str]

    def has_room(self, trainer: TrainerRecord) -> bool:
        """Whether it may take one more."""
        return trainer.trainer_id not in self.full and self.free(trainer) > 0

    def free(self, trainer: TrainerRecord) -> int:
        """Trainings it may take."""
        return trainer.capacity - self.load.get(trainer.trainer_id, 0)


def assign_next(
    connection: Connection, owner: str, lease_seconds: float, full: frozenset[str]
) -> str | None:
    """Gives the oldest operation that can run to a trainer, as a new attempt.

    Args:
        connection: Of the transaction.
        owner: The control plane that will follow the attempt.
        lease_seconds: How long it says so at first.
        full: Trainers that have no room though this database thinks so.

    Returns:
        The operation; None when nothing can be assigned now. Those that wait then say for what.
    """
    now = times.now()
    waiting = operations.queued(connection, State.PENDING, now, ROUND)
    if not waiting:
        return None
    known = trainers.every(connection, lock=True)
    running = attempts.open_by_trainer(connection)
    state = Trainers(
        [trainer for trainer in known if trainer.takes_work(now)],
        {trainer_id: len(operation_ids) for trainer_id, operation_ids in running.items()},
        full,
    )
    for operation in waiting:
        trainer = _choose(connection, operation, state)
        if isinstance(trainer, TrainerRecord):
            _begin_attempt(connection, operation, trainer, owner, times.after(lease_seconds))
            return operation.operation_id
        if operation.waiting_for != trainer:
            operations.set_values(connection, operation.operation_id, waiting_for=trainer)
    return None


def _choose(
    connection: Connection, operation: OperationRecord, state: Trainers
) -> TrainerRecord | str:
    """The trainer for an operation, or what it waits for."""
    if not state.available:
        return "a trainer: none is registered and takes work; start one, or undo its draining"
    candidates = list(state.available)
    last = attempts.find(connection, operation.operation_id, operation.attempt)
    if last is not None:
        # The same bytes come out only where the environment is the same.
        alike = [trainer for trainer in candidates if trainer.environment == last.environment]
        candidates = alike or candidates
    free = [trainer for trainer in candidates if state.has_room(trainer)]
    if not free:
        names = ", ".join(trainer.trainer_id for trainer in candidates[:5])
        more = "" if len(candidates) <= 5 else f" and {len(candidates) - 5} more"
        return f"room on a trainer: {names}{more} {'is' if len(candidates) == 1 else 'are'} full"
    return max(free, key=lambda trainer: (state.free(trainer), trainer.trainer_id))


def _begin_attempt(
    connection: Connection,
    operation: OperationRecord,
    trainer: TrainerRecord,
    owner: str,
    lease_time: int,
) -> None:
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
        values={"owner": owner, "owner_lease_time": lease_time},
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
