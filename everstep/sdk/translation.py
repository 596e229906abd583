"""The contract's messages as the values that users see."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from everstep.control.v1 import checkpoints_pb2, operations_pb2, trainers_pb2
from everstep.errors import FieldViolation
from everstep.sdk.checkpoints import (
    Checkpoint,
    CheckpointTrigger,
    CollectedGarbage,
    LineageEvent,
    LineageKind,
    StorageUsage,
    Verification,
    VerifiedCheckpoint,
)
from everstep.sdk.operations import (
    Attempt,
    Failure,
    Liveness,
    LivenessState,
    Operation,
    OperationState,
    Phase,
    Position,
    TrainingResult,
    WorkAtRisk,
)
from everstep.sdk.strategy import stored_strategy
from everstep.sdk.trainers import RunningAttempt, Trainer, TrainerEnvironment
from everstep.training.v1 import checkpoint_pb2, progress_pb2

Name = TypeVar("Name", bound=StrEnum)


def operation(message: operations_pb2.Operation) -> Operation:
    """One operation."""
    latest = message.latest_checkpoint
    return Operation(
        id=message.operation_id,
        name=message.display_name,
        state=state(message.state),
        strategy=stored_strategy(message.strategy),
        strategy_digest=message.strategy_digest,
        labels=dict(message.labels),
        created=moment(message.create_time),
        updated=moment(message.update_time),
        ended=moment(message.end_time) if message.HasField("end_time") else None,
        position=position(message.position),
        metrics=dict(message.metrics),
        result=training_result(message.result) if message.HasField("result") else None,
        failure=failure(message.error) if message.HasField("error") else None,
        attempts=tuple(attempt(one) for one in message.attempts),
        first_sequence=max(1, message.first_sequence),
        last_sequence=message.last_sequence,
        latest_checkpoint=checkpoint(latest) if latest.reference.checkpoint_id else None,
        resumable=message.resumable,
        parent_id=message.parent_operation_id,
        from_checkpoint_id=message.from_checkpoint.checkpoint_id,
        waiting_for=message.waiting_for,
        at_risk=work_at_risk(message.at_risk) if message.HasField("at_risk") else None,
        priority=message.priority,
        trainer_labels=dict(message.trainer_labels),
        liveness=liveness(message.liveness) if message.HasField("liveness") else None,
    )


def attempt(message: operations_pb2.Attempt) -> Attempt:
    """One attempt."""
    return Attempt(
        number=message.number,
        trainer_id=message.trainer_id,
        started=moment(message.start_time),
        ended=moment(message.end_time) if message.HasField("end_time") else None,
        first_step=message.first_step,
        last_step=message.last_step,
        end=message.end,
        end_reason=message.end_reason,
        process_id=message.process_id,
    )


def state(value: operations_pb2.OperationState.ValueType) -> OperationState:
    """A state's name."""
    names = operations_pb2.OperationState.DESCRIPTOR.values_by_number
    return _named(OperationState, names[value].name if value in names else "", "OPERATION_STATE_")


def state_value(name: str) -> operations_pb2.OperationState.ValueType:
    """The contract's number of a state.

    Raises:
        ValueError: When there is no such state.
    """
    wanted = OperationState(name)
    return operations_pb2.OperationState.Value(f"OPERATION_STATE_{wanted.name}")


def phase(value: progress_pb2.Phase.ValueType) -> Phase:
    """A phase's name."""
    names = progress_pb2.Phase.DESCRIPTOR.values_by_number
    return _named(Phase, names[value].name if value in names else "", "PHASE_")


def trigger(value: checkpoint_pb2.CheckpointTrigger.ValueType) -> CheckpointTrigger:
    """A trigger's name."""
    names = checkpoint_pb2.CheckpointTrigger.DESCRIPTOR.values_by_number
    name = names[value].name if value in names else ""
    return _named(CheckpointTrigger, name, "CHECKPOINT_TRIGGER_")


def position(message: progress_pb2.TrainingPosition) -> Position:
    """How far a training is."""
    return Position(
        epoch=message.epoch,
        total_epochs=message.total_epochs,
        batch=message.batch,
        batches_per_epoch=message.batches_per_epoch,
        step=message.step,
        total_steps=message.total_steps,
        fraction=message.fraction,
        eta_seconds=message.eta_seconds if message.HasField("eta_seconds") else None,
    )


def work_at_risk(message: progress_pb2.WorkAtRisk) -> WorkAtRisk:
    """What a loss would cost."""
    return WorkAtRisk(
        steps_since_checkpoint=message.steps_since_checkpoint,
        seconds_since_checkpoint=message.seconds_since_checkpoint,
        steps_since_snapshot=message.steps_since_snapshot,
        seconds_since_snapshot=message.seconds_since_snapshot,
        upload_lag_seconds=message.upload_lag_seconds,
        stall_share=message.stall_share,
    )


def liveness(message: operations_pb2.Liveness) -> Liveness:
    """What is heard of an attempt."""
    names = operations_pb2.LivenessState.DESCRIPTOR.values_by_number
    name = names[message.state].name if message.state in names else ""
    return Liveness(
        state=_named(LivenessState, name, "LIVENESS_STATE_"),
        since=moment(message.since) if message.HasField("since") else None,
        message=message.message,
    )


def training_result(message: progress_pb2.TrainingResult) -> TrainingResult:
    """A completed training's result."""
    final = message.checkpoint
    return TrainingResult(
        epochs=message.epochs,
        steps=message.steps,
        stopped_early=message.stopped_early,
        stop_reason=message.stop_reason,
        metrics=dict(message.metrics),
        monitor=message.monitor,
        best_value=message.best_value if message.HasField("best_value") else None,
        best_epoch=message.best_epoch if message.HasField("best_epoch") else None,
        digests=dict(message.digests),
        checkpoint=checkpoint(final) if final.reference.checkpoint_id else None,
    )


def failure(message: progress_pb2.TrainingError) -> Failure:
    """Why a training failed."""
    return Failure(
        reason=message.reason,
        message=message.message,
        violations=tuple(FieldViolation(v.field, v.description) for v in message.violations),
        detail=message.detail,
        restartable=message.restartable,
    )


def checkpoint(message: checkpoint_pb2.Checkpoint) -> Checkpoint:
    """One checkpoint."""
    return Checkpoint(
        id=message.reference.checkpoint_id,
        operation_id=message.operation_id,
        attempt=message.attempt,
        epoch=message.epoch,
        step=message.step,
        trigger=trigger(message.trigger),
        created=moment(message.create_time),
        logical_bytes=message.logical_bytes,
        uploaded_bytes=message.uploaded_bytes,
        digests=dict(message.digests),
        metrics=dict(message.metrics),
        monitor=message.monitor,
        monitor_value=message.monitor_value if message.HasField("monitor_value") else None,
        pinned=message.pinned,
        lineage=message.lineage,
        lineage_events=tuple(_lineage_event(event) for event in message.lineage_events),
    )


def verification(message: checkpoints_pb2.VerifyCheckpointResponse) -> Verification:
    """A checkpoint that was found whole."""
    return Verification(message.blobs, message.bytes)


def verified_checkpoint(message: checkpoints_pb2.VerifiedCheckpoint) -> VerifiedCheckpoint:
    """What came out of reading a checkpoint again."""
    return VerifiedCheckpoint(
        checkpoint_id=message.checkpoint_id,
        operation_id=message.operation_id,
        step=message.step,
        damaged=message.damaged,
        damaged_key=message.damaged_key,
        message=message.message,
        blobs=message.blobs,
        bytes=message.bytes,
    )


def storage_usage(message: checkpoints_pb2.GetStorageUsageResponse) -> StorageUsage:
    """What checkpoints take in the store."""
    return StorageUsage(
        checkpoints=message.checkpoints,
        logical_bytes=message.logical_bytes,
        saved_bytes=message.saved_bytes,
        stored_bytes=message.stored_bytes,
        stored_blobs=message.stored_blobs,
        reclaimable_bytes=message.reclaimable_bytes,
        reclaimable_blobs=message.reclaimable_blobs,
        damaged_checkpoints=message.damaged_checkpoints,
        unregistered_checkpoints=message.unregistered_checkpoints,
        unreadable_manifests=message.unreadable_manifests,
        unfinished_uploads=message.unfinished_uploads,
        unfinished_bytes=message.unfinished_bytes,
    )


def collected_garbage(
    message: checkpoints_pb2.CollectGarbageResponse, dry_run: bool
) -> CollectedGarbage:
    """What a garbage collection removed."""
    return CollectedGarbage(
        removed_blobs=message.removed_blobs,
        removed_bytes=message.removed_bytes,
        kept_blobs=message.kept_blobs,
        aborted_uploads=message.aborted_uploads,
        aborted_bytes=message.aborted_bytes,
        dry_run=dry_run,
    )


def trainer(message: trainers_pb2.Trainer) -> Trainer:
    """One trainer."""
    environment = message.environment
    return Trainer(
        id=message.trainer_id,
        address=message.address,
        capacity=message.capacity,
        environment=TrainerEnvironment(
            torch_version=environment.torch_version,
            python_version=environment.python_version,
            device=environment.device,
            cpu_model=environment.cpu_model,
            threads=environment.threads,
            everstep_version=environment.everstep_version,
        ),
        lease_expires=moment(message.lease_expire_time),
        alive=message.alive,
        draining=message.draining,
        operation_ids=tuple(message.operation_ids),
        labels=dict(message.labels),
        last_heard=(
            moment(message.last_heard_time) if message.HasField("last_heard_time") else None
        ),
        running=tuple(running_attempt(one) for one in message.running),
    )


def running_attempt(message: trainers_pb2.RunningAttempt) -> RunningAttempt:
    """An attempt that a trainer runs."""
    return RunningAttempt(
        operation_id=message.operation_id,
        name=message.display_name,
        number=message.attempt,
        started=moment(message.start_time),
        position=position(message.position),
        moving_to=message.moving_to,
    )


def moment(timestamp: Timestamp) -> datetime:
    """In UTC, and saying so."""
    return timestamp.ToDatetime(tzinfo=UTC)


def _lineage_event(message: checkpoint_pb2.LineageEvent) -> LineageEvent:
    names = checkpoint_pb2.LineageKind.DESCRIPTOR.values_by_number
    name = names[message.kind].name if message.kind in names else ""
    return LineageEvent(_named(LineageKind, name, "LINEAGE_KIND_"), message.step, message.message)


def _named(names: type[Name], name: str, prefix: str) -> Name:
    """The member for the contract's name; UNKNOWN for one that a newer service has."""
    found = names.__members__.get(name.removeprefix(prefix))
    return names.__members__["UNKNOWN"] if found is None else found
