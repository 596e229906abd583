"""What a person sees of a training: phases that move a state, work at risk, a curve, a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from everstep.control.v1.operations_pb2 import OperationEvent, ResumeOperationRequest
from everstep.object_store_process import MinioProcess
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.progress_pb2 import Phase, PhaseProgress, TrainingProgress
from tests.services.conftest import ACCESS_KEY, SECRET_KEY
from tests.services.processes import ServiceProcess
from tests.services.stack import Stack
from tests.services.strategies import digits

#: Seventy megabytes of state.
LARGE = digits(
    epochs=1,
    model={"factory": "mlp", "args": {"hidden": [2048, 2048]}},
    training={"batch_size": 256},
    scheduler={"name": "StepLR", "args": {"step_size": 10}},
)


TRIES = 4


def phase_progress(events: list[OperationEvent], phase: Phase.ValueType) -> list[PhaseProgress]:
    moved = [event.progress.phase_progress for event in events]
    return [progress for progress in moved if progress.phase == phase]


def test_a_watcher_sees_how_far_a_state_is_on_its_way(stack: Stack) -> None:
    # Such events are transient: a busy machine may pass over those of one short upload.
    for _ in range(TRIES):
        operation_id = stack.create(LARGE)
        events = stack.watch(operation_id)
        if phase_progress(events, Phase.PHASE_FINISHING):
            break
    finishing = phase_progress(events, Phase.PHASE_FINISHING)
    assert finishing, "no PHASE_FINISHING progress was seen"
    assert all(0 < p.done_bytes <= p.total_bytes for p in finishing)
    assert finishing[-1].total_bytes > 50_000_000
    last = stack.get(operation_id).last_sequence
    request = ResumeOperationRequest(operation_id=operation_id)
    request.overrides.epochs = 2
    stack.operations.ResumeOperation(request)
    restoring = phase_progress(
        stack.watch(operation_id, after_sequence=last), Phase.PHASE_RESTORING
    )
    assert restoring, "no PHASE_RESTORING progress was seen"
    assert all(0 < p.done_bytes <= p.total_bytes for p in restoring)


def test_work_at_risk_is_told_kept_and_gone_with_the_attempt(stack: Stack) -> None:
    strategy = digits(epochs=300, checkpoint={"every_steps": 60, "every_epochs": 0})
    operation_id = stack.create(strategy)

    def second_checkpoint(event: OperationEvent) -> bool:
        return event.progress.checkpoint_committed.checkpoint.step >= 120

    events = stack.watch(operation_id, second_checkpoint)
    events += stack.watch(
        operation_id,
        lambda event: bool(event.progress.step_metrics.loss and event.sequence),
        events[-1].sequence,
    )
    for event in events:
        progress = event.progress
        stepped = progress.position.step > 0
        assert progress.HasField("at_risk") == (event.HasField("progress") and stepped), event
        assert progress.at_risk.steps_since_snapshot <= progress.at_risk.steps_since_checkpoint
        assert 0 <= progress.at_risk.stall_share < 1
    committed = [e.progress for e in events if e.progress.HasField("checkpoint_committed")]
    for progress in committed:
        since = progress.position.step - progress.checkpoint_committed.checkpoint.step
        assert max(0, since) <= progress.at_risk.steps_since_checkpoint <= max(0, since) + 60
        assert progress.at_risk.upload_lag_seconds == 0
    assert any(e.progress.at_risk.upload_lag_seconds > 0 for e in events)
    # A sample of the step metrics is kept, at most one a second.
    kept = [e for e in events if e.sequence and e.progress.HasField("step_metrics")]
    times = [event.time.ToNanoseconds() / 1e9 for event in kept]
    assert all(later - earlier > 0.9 for earlier, later in pairwise(times))
    assert kept[-1].progress.index > 0

    running = stack.get(operation_id)
    assert running.HasField("at_risk")
    assert "loss" in running.metrics
    stack.trainer.stop()
    stack.watch(operation_id, lambda event: event.state_changed.reason == "HANDED_OVER")
    waiting = stack.get(operation_id)
    assert not waiting.HasField("at_risk")
    assert not waiting.position.HasField("eta_seconds")
    assert waiting.position.step > 0


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioProcess]:
    """A store that a test may stop."""
    process = MinioProcess(tmp_path / "minio", 0, ACCESS_KEY, SECRET_KEY)
    process.start()
    process.wait_ready(60)
    yield process
    process.stop()


def test_checkpoints_that_fall_behind_are_told_once(
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
    own_minio: MinioProcess,
) -> None:
    trainer = make_trainer(EVERSTEP_STORE_URL=own_minio.url("behind")).start()
    stub = TrainerServiceStub(connect(trainer))
    strategy = digits(epochs=1000, checkpoint={"every_steps": 40})
    request = trainer_pb2.StartTrainingRequest(operation_id="op-behind", strategy=strategy)
    stream = stub.StartTraining(request)

    def until(wanted: Callable[[TrainingProgress], bool]) -> TrainingProgress:
        return next(message for message in stream if wanted(message))

    def behind(message: TrainingProgress) -> bool:
        return message.warning.reason == "CHECKPOINTS_BEHIND"

    until(lambda m: m.HasField("checkpoint_committed"))
    own_minio.stop()
    warned = until(behind)
    assert warned.at_risk.seconds_since_checkpoint >= 10
    assert warned.at_risk.steps_since_checkpoint > 3 * 40
    assert f"{warned.at_risk.steps_since_checkpoint} steps" in warned.warning.message
    assert warned.index > 0
    own_minio.start()
    rest = []
    for message in stream:
        rest.append(message)
        if sum(m.HasField("checkpoint_committed") for m in rest) == 2:
            break
    assert not [message for message in rest if behind(message)]
    stub.CancelTraining(
        trainer_pb2.CancelTrainingRequest(operation_id="op-behind", attempt=1, discard=True)
    )
