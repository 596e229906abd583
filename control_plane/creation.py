"""How an operation is created: its row, its place in the queue, the first entry of its log."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from control_plane import resumption, times
from control_plane.answered_requests import answered_with, remember_answer
from control_plane.checkpoint_records import known_checkpoint
from control_plane.database import events, operations
from control_plane.database.operations import OperationRecord
from control_plane.limits import check_queue
from control_plane.operation_messages import get_operation
from control_plane.placement import demand_digest, labels_text
from control_plane.states import State
from control_plane.transitions import created_event
from everstep.control.v1.operations_pb2 import CreateOperationRequest, Operation, RestartPolicy
from everstep.strategy import strategy_digest
from everstep.training.v1.strategy_pb2 import TrainingStrategy

#: Seconds of waiting that a point of priority is worth: so nothing waits for ever.
PRIORITY_SECONDS: Final = 3600


def queue_time(create_time: int, priority: int) -> int:
    """What orders the queue, the least first; both times in microseconds since 1970."""
    return create_time - priority * PRIORITY_SECONDS * times.SECOND


def create_operation(
    connection: Connection,
    operation_id: str,
    request: CreateOperationRequest,
    strategy: TrainingStrategy,
    max_queued: int,
) -> Operation:
    """Adds an operation to the queue; the same request_id gives the one there is.

    Args:
        connection: Of the transaction.
        operation_id: Of the new one.
        request: As it came.
        strategy: Resolved and valid.
        max_queued: Operations that may wait for a trainer.

    Raises:
        EverstepError: REQUEST_ID_REUSED, CHECKPOINT_NOT_FOUND, QUEUE_FULL.
    """
    answered = answered_with(connection, request.request_id, request)
    if answered is not None:
        return get_operation(connection, answered)
    check_queue(connection, max_queued)
    parent, reference = "", None
    if request.from_checkpoint:
        checkpoint = known_checkpoint(connection, request.from_checkpoint)
        parent = checkpoint.operation_id
        reference = resumption.reference_of(checkpoint).SerializeToString()
    record = _record(operation_id, request, strategy, parent, reference)
    operations.add(connection, record, request.labels)
    remember_answer(connection, request.request_id, request, operation_id)
    origin = f"forked from checkpoint {request.from_checkpoint}" if parent else "created"
    events.append(connection, operation_id, [created_event(origin)])
    return get_operation(connection, operation_id)


def _record(
    operation_id: str,
    request: CreateOperationRequest,
    strategy: TrainingStrategy,
    parent: str,
    from_checkpoint: bytes | None,
) -> OperationRecord:
    now = times.now()
    trainer_labels = labels_text(request.trainer_labels)
    return OperationRecord(
        operation_id=operation_id,
        display_name=request.display_name or strategy.name,
        state=State.PENDING,
        strategy=strategy.SerializeToString(),
        strategy_digest=strategy_digest(strategy),
        restart_policy=_policy(request.restart_policy).SerializeToString(),
        create_time=now,
        update_time=now,
        end_time=None,
        attempt=0,
        last_sequence=0,
        first_sequence=1,
        owner="",
        owner_lease_time=0,
        losses=0,
        due_time=0,
        waiting_for="",
        position=b"",
        at_risk=None,
        metrics="{}",
        result=None,
        error=None,
        discard=False,
        overrides=None,
        resumed_after=-1,
        resume_checkpoint_id=None,
        resume_named=False,
        parent_operation_id=parent,
        from_checkpoint=from_checkpoint,
        priority=request.priority,
        queue_time=queue_time(now, request.priority),
        trainer_labels=trainer_labels,
        demand=demand_digest(trainer_labels, None),
        moving_to="",
    )


def _policy(asked: RestartPolicy) -> RestartPolicy:
    """As asked, with defaults filled in."""
    policy = RestartPolicy(
        max_attempts=5 if not asked.HasField("max_attempts") else None,
        backoff_seconds=1.0 if not asked.HasField("backoff_seconds") else None,
    )
    policy.MergeFrom(asked)
    return policy
