"""A training through both services: killed, cancelled, resumed, and always the same bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc

from everstep.control.v1 import (
    checkpoints_pb2,
    operations_pb2,
    trainers_pb2,
)
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_RUNNING,
    OperationEvent,
)
from everstep.training.v1.checkpoint_pb2 import CheckpointTrigger
from tests.services.processes import ServiceProcess, wait_for
from tests.services.stack import Stack
from tests.services.strategies import digits


def mid_epoch(epoch: int) -> Callable[[OperationEvent], bool]:
    def wanted(event: OperationEvent) -> bool:
        position = event.progress.position
        return (
            event.progress.HasField("step_metrics")
            and position.epoch >= epoch
            and 0 < position.batch < position.batches_per_epoch
        )

    return wanted


def progress_kinds(events: list[OperationEvent]) -> list[str]:
    return [event.progress.WhichOneof("event") for event in events if event.HasField("progress")]


def assert_log_is_whole(events: list[OperationEvent]) -> None:
    sequences = [event.sequence for event in events if event.sequence]
    assert sequences == list(range(1, len(sequences) + 1))


def reported_epochs(events: list[OperationEvent]) -> list[int]:
    return [
        event.progress.epoch_completed.epoch
        for event in events
        if event.progress.HasField("epoch_completed")
    ]


def test_killed_child_trainer_and_control_plane_end_in_the_same_bytes(stack: Stack) -> None:
    strategy = digits(epochs=6)
    reference = stack.train(strategy)

    operation_id = stack.create(strategy)
    stack.watch(operation_id, mid_epoch(1))
    os.kill(stack.get(operation_id).attempts[-1].process_id, signal.SIGKILL)
    restarted = stack.watch(
        operation_id, lambda event: event.progress.HasField("training_restarted")
    )
    last = max(event.sequence for event in restarted)
    stack.watch(operation_id, mid_epoch(2), after_sequence=last)
    stack.control_plane.kill()
    stack.trainer.kill()
    stack.control_plane.start()
    stack.trainer.start()

    operation = stack.finished(operation_id)
    assert operation.state == OPERATION_STATE_COMPLETED, operation
    assert operation.result.digests == reference.result.digests
    assert operation.result.metrics == reference.result.metrics
    assert operation.result.best_value == reference.result.best_value
    assert len(operation.attempts) == 2
    events = stack.watch(operation_id)
    assert_log_is_whole(events)
    assert set(reported_epochs(events)) == set(range(6))
    fractions = [event.progress.position.fraction for event in events if event.sequence]
    shown = [fraction for fraction in fractions if fraction]
    assert shown == sorted(shown)


def test_cancel_makes_a_checkpoint_and_resume_goes_on_after_it(stack: Stack) -> None:
    strategy = digits(epochs=5)
    reference = stack.train(strategy)

    operation_id = stack.create(strategy)
    stack.watch(operation_id, mid_epoch(1))
    stack.operations.CancelOperation(
        operations_pb2.CancelOperationRequest(operation_id=operation_id)
    )
    cancelled = stack.finished(operation_id)
    assert cancelled.state == OPERATION_STATE_CANCELLED
    assert cancelled.resumable
    checkpoint = cancelled.latest_checkpoint
    assert checkpoint.trigger == CheckpointTrigger.CHECKPOINT_TRIGGER_CANCELLATION
    before = stack.watch(operation_id)

    stack.operations.ResumeOperation(
        operations_pb2.ResumeOperationRequest(operation_id=operation_id)
    )
    completed = stack.finished(operation_id)
    assert completed.state == OPERATION_STATE_COMPLETED
    assert completed.result.digests == reference.result.digests
    assert completed.attempts[1].first_step == checkpoint.step + 1

    events = stack.watch(operation_id)
    durable = [e for e in before if e.sequence]
    assert durable == events[: len(durable)]
    assert_log_is_whole(events)
    assert reported_epochs(events) == list(range(5))


def test_a_discarded_training_is_cancelled_without_a_new_checkpoint(stack: Stack) -> None:
    operation_id = stack.create(digits(epochs=300, checkpoint={"every_steps": 0}))
    stack.watch(operation_id, mid_epoch(0))
    stack.operations.CancelOperation(
        operations_pb2.CancelOperationRequest(operation_id=operation_id, discard=True)
    )
    cancelled = stack.finished(operation_id)
    assert cancelled.state == OPERATION_STATE_CANCELLED
    triggers = [
        event.progress.checkpoint_committed.checkpoint.trigger
        for event in stack.watch(operation_id)
        if event.progress.HasField("checkpoint_committed")
    ]
    assert CheckpointTrigger.CHECKPOINT_TRIGGER_CANCELLATION not in triggers


def test_two_trainers_a_stopped_one_hands_over_to_the_other(
    stack: Stack, make_trainer: Callable[..., ServiceProcess]
) -> None:
    strategy = digits(epochs=8)
    reference = stack.train(strategy)
    operation_id = stack.create(strategy)
    stack.watch(operation_id, mid_epoch(1))
    second = make_trainer("trainer-2", EVERSTEP_CONTROL_PLANE=stack.control_plane.address).start()
    wait_for(
        lambda: len(stack.trainers.ListTrainers(trainers_pb2.ListTrainersRequest()).trainers) == 2,
        "both trainers",
    )
    assert stack.trainer.stop() == 0
    completed = stack.finished(operation_id)
    assert completed.state == OPERATION_STATE_COMPLETED, completed
    assert [attempt.trainer_id for attempt in completed.attempts] == ["trainer-1", "trainer-2"]
    assert completed.attempts[0].end == "HANDED_OVER"
    assert completed.result.digests == reference.result.digests
    assert second.stop() == 0


def test_a_trainer_whose_machine_is_taken_away_hands_over(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
    tmp_path: Path,
) -> None:
    notice = tmp_path / "preempted"
    control_plane = make_control_plane().start()
    first = make_trainer(
        EVERSTEP_CONTROL_PLANE=control_plane.address, EVERSTEP_PREEMPTION_FILE=str(notice)
    ).start()
    stack = Stack(control_plane, first, connect)
    strategy = digits(epochs=6)
    operation_id = stack.create(strategy)
    stack.watch(operation_id, mid_epoch(1))
    second = make_trainer("trainer-2", EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    notice.touch()
    assert first.exit_code() == 0
    stack.watch(operation_id, mid_epoch(2))
    os.kill(second.process_id, signal.SIGUSR2)
    assert second.exit_code() == 0
    third = make_trainer("trainer-3", EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    completed = stack.finished(operation_id)
    assert completed.state == OPERATION_STATE_COMPLETED, completed
    assert [(attempt.trainer_id, attempt.end) for attempt in completed.attempts] == [
        ("trainer-1", "HANDED_OVER"),
        ("trainer-2", "HANDED_OVER"),
        ("trainer-3", "COMPLETED"),
    ]
    assert completed.result.digests == stack.train(strategy).result.digests
    assert third.stop() == 0


def test_a_checkpoint_can_be_asked_for_and_verified(stack: Stack) -> None:
    operation_id = stack.create(
        digits(epochs=300, checkpoint={"every_steps": 0, "every_epochs": 0})
    )
    stack.watch(operation_id, mid_epoch(0))
    stack.operations.CheckpointOperation(
        operations_pb2.CheckpointOperationRequest(operation_id=operation_id)
    )
    stack.watch(operation_id, lambda event: event.progress.HasField("checkpoint_committed"))
    assert stack.get(operation_id).state == OPERATION_STATE_RUNNING
    checkpoints = stack.checkpoints.ListCheckpoints(
        checkpoints_pb2.ListCheckpointsRequest(operation_id=operation_id)
    ).checkpoints
    assert [c.trigger for c in checkpoints] == [CheckpointTrigger.CHECKPOINT_TRIGGER_REQUESTED]
    verified = stack.checkpoints.VerifyCheckpoint(
        checkpoints_pb2.VerifyCheckpointRequest(
            checkpoint_id=checkpoints[0].reference.checkpoint_id
        )
    )
    assert verified.blobs >= 2
    assert verified.bytes >= checkpoints[0].logical_bytes
    stack.operations.CancelOperation(
        operations_pb2.CancelOperationRequest(operation_id=operation_id, discard=True)
    )
