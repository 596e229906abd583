"""Operations as the contract shows them, put together from their rows."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from checkpoint_store.digests import parse_canonical_json
from control_plane import times
from control_plane.checkpoint_records import checkpoint_message
from control_plane.database import attempts, checkpoints, operations, trainers
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from control_plane.liveness import liveness_message
from control_plane.log_tail import operation_not_found
from control_plane.placement import TrainerPool, parse_labels, read_pool
from control_plane.states import TRANSITIONS, Change, State
from control_plane.waiting import waiting_for
from everstep.control.v1.operations_pb2 import Attempt, Operation


def operation_messages(
    connection: Connection, records: Sequence[OperationRecord]
) -> list[Operation]:
    """The operations, with labels, attempts and newest checkpoints."""
    ids = [record.operation_id for record in records]
    labels = operations.labels_of(connection, ids)
    ran = attempts.of_operations(connection, ids)
    newest = checkpoints.newest_of(connection, ids)
    waits = any(record.state == State.PENDING for record in records)
    pool = read_pool(connection, frozenset(), lock=False) if waits else None
    there = trainers.find_many(
        connection, {row.trainer_id for rows in ran.values() for row in rows if not row.ending}
    )
    messages = []
    for record in records:
        message = _operation(record)
        message.labels.update(labels.get(record.operation_id, []))
        message.attempts.extend(_attempt(row) for row in ran.get(record.operation_id, []))
        if pool is not None and record.state == State.PENDING:
            message.waiting_for = _waiting_for(record, ran.get(record.operation_id, []), pool)
        for row in ran.get(record.operation_id, []):
            if not row.ending:
                shown = liveness_message(row, there.get(row.trainer_id))
                message.liveness.CopyFrom(shown)
        checkpoint = newest.get(record.operation_id)
        if checkpoint is not None:
            message.latest_checkpoint.CopyFrom(checkpoint_message(checkpoint))
            message.resumable = State(record.state) in TRANSITIONS[Change.RESUMED].sources
        messages.append(message)
    return messages


def get_operation(connection: Connection, operation_id: str) -> Operation:
    """One operation.

    Raises:
        EverstepError: OPERATION_NOT_FOUND.
    """
    record = operations.find(connection, operation_id)
    if record is None:
        raise operation_not_found(operation_id)
    return operation_messages(connection, [record])[0]


def _waiting_for(record: OperationRecord, ran: list[AttemptRecord], pool: TrainerPool) -> str:
    environment = ran[-1].environment if ran else None
    return waiting_for(record, environment, pool, times.now())


def _operation(record: OperationRecord) -> Operation:
    message = Operation(
        operation_id=record.operation_id,
        display_name=record.display_name,
        state=State(record.state).message,
        strategy_digest=record.strategy_digest,
        create_time=times.timestamp(record.create_time),
        update_time=times.timestamp(record.update_time),
        metrics=parse_canonical_json(record.metrics.encode()),
        last_sequence=record.last_sequence,
        first_sequence=record.first_sequence,
        parent_operation_id=record.parent_operation_id,
        priority=record.priority,
        trainer_labels=parse_labels(record.trainer_labels),
    )
    message.strategy.ParseFromString(record.strategy)
    message.restart_policy.ParseFromString(record.restart_policy)
    message.position.ParseFromString(record.position)
    if record.end_time is not None:
        message.end_time.CopyFrom(times.timestamp(record.end_time))
    for field, stored in (
        (message.at_risk, record.at_risk),
        (message.result, record.result),
        (message.error, record.error),
        (message.overrides, record.overrides),
        (message.from_checkpoint, record.from_checkpoint),
    ):
        if stored is not None:
            field.ParseFromString(stored)
            field.SetInParent()
    return message


def _attempt(record: AttemptRecord) -> Attempt:
    message = Attempt(
        number=record.number,
        trainer_id=record.trainer_id,
        start_time=times.timestamp(record.start_time),
        first_step=record.first_step,
        last_step=record.last_step,
        end=record.ending,
        end_reason=record.end_reason,
        process_id=record.process_id,
    )
    if record.end_time is not None:
        message.end_time.CopyFrom(times.timestamp(record.end_time))
    return message
