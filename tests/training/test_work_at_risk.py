"""Work at risk, step by step; checkpoints that fall behind; the samples that are kept."""

from __future__ import annotations

from itertools import pairwise

from everstep.training.v1.progress_pb2 import (
    Phase,
    PhaseChanged,
    TrainingPosition,
    TrainingProgress,
    WorkAtRisk,
)
from everstep.training.v1.strategy_pb2 import CheckpointPolicy
from trainer_service.child.pipe import SlotContent, SnapshotTaken
from trainer_service.step_samples import StepSamples
from trainer_service.work_at_risk import RiskMeter


class Training:
    """One that a test moves on, with its clock."""

    def __init__(self, first_step: int = 0, **policy: float) -> None:
        self.now = 1000.0
        self.meter = RiskMeter(CheckpointPolicy(**policy), lambda: self.now)  # type: ignore[arg-type]
        self.step = first_step
        self._said(phase_changed=PhaseChanged(phase=Phase.PHASE_TRAINING))

    def run(self, steps: int, seconds: float) -> None:
        self.step += steps
        self.now += seconds
        self._said()

    def snapshot(self, slot: int, trigger: str = "PERIODIC", stall: float = 0.0) -> SnapshotTaken:
        taken = SnapshotTaken(
            content=SlotContent(slot, (), {}),
            trigger=trigger,
            handed_over=True,
            epoch=0,
            step=self.step,
            metrics={},
            monitor="",
            monitor_value=None,
            fingerprint={},
            data_digest="",
            lineage=[],
            stall_seconds=stall,
        )
        self.meter.snapshot_taken(taken)
        return taken

    def commit(self, slot: int, seconds: float = 0.0) -> None:
        """Takes a snapshot, and has it in the store after so long."""
        self.meter.upload_begun(self.snapshot(slot))
        self.now += seconds
        self.meter.upload_ended(committed=True)

    def measure(self) -> WorkAtRisk:
        measured = self.meter.measure()
        assert measured is not None
        return measured

    def _said(self, **event: PhaseChanged) -> None:
        position = TrainingPosition(step=self.step, total_steps=1000, total_epochs=10)
        self.meter.heard(TrainingProgress(position=position, **event))  # type: ignore[arg-type]


def test_there_is_none_before_the_first_step() -> None:
    training = Training(first_step=40)
    assert training.meter.measure() is None
    training.run(1, 2.0)
    risk = training.measure()
    assert (risk.steps_since_checkpoint, risk.seconds_since_checkpoint) == (1, 2.0)
    assert (risk.steps_since_snapshot, risk.seconds_since_snapshot) == (1, 2.0)
    assert risk.upload_lag_seconds == 0


def test_a_snapshot_makes_the_process_safe_and_a_checkpoint_the_machine() -> None:
    training = Training()
    training.run(10, 5.0)
    memory = training.snapshot(0, "MEMORY", stall=1.0)
    training.run(3, 1.0)
    risk = training.measure()
    assert (risk.steps_since_snapshot, risk.seconds_since_snapshot) == (3, 1.0)
    assert (risk.steps_since_checkpoint, risk.seconds_since_checkpoint) == (13, 6.0)
    assert risk.stall_share == 1 / 6

    training.meter.upload_begun(memory)
    training.run(2, 4.0)
    assert training.measure().upload_lag_seconds == 5.0
    training.snapshot(1, "MEMORY")
    training.meter.upload_ended(committed=True)
    risk = training.measure()
    # Since what is in it, not since it got there.
    assert (risk.steps_since_checkpoint, risk.seconds_since_checkpoint) == (5, 5.0)
    assert risk.steps_since_snapshot == 0
    assert risk.upload_lag_seconds == 0


def test_what_was_given_up_is_no_checkpoint() -> None:
    training = Training()
    training.run(10, 5.0)
    training.meter.upload_begun(training.snapshot(0))
    training.meter.upload_ended(committed=False)
    assert training.measure().steps_since_checkpoint == 10
    assert training.measure().upload_lag_seconds == 0


def test_a_process_that_begins_again_is_not_ahead_of_itself() -> None:
    training = Training()
    training.run(10, 5.0)
    training.commit(0)
    training.run(-3, 1.0)
    assert training.measure().steps_since_checkpoint == 0


def test_steps_that_were_not_told_are_at_risk_too() -> None:
    training = Training()
    training.run(10, 5.0)
    training.commit(0)
    training.step += 7
    training.snapshot(1, "MEMORY")
    assert training.measure().steps_since_checkpoint == 7


def test_behind_is_said_once_until_it_has_caught_up() -> None:
    training = Training(every_steps=10, every_epochs=0)
    training.run(31, 9.0)
    training.snapshot(0)
    assert training.meter.warning() is None, "ten seconds are not lost yet"
    training.run(10, 2.0)
    warning = training.meter.warning()
    assert warning is not None
    assert warning.reason == "CHECKPOINTS_BEHIND"
    assert warning.message.startswith("41 steps and 11 s are not in the store yet")
    training.run(10, 2.0)
    assert training.meter.warning() is None
    # An upload that takes longer than the policy allows for does not end the stretch.
    for _ in range(3):
        training.commit(0)
        training.run(40, 12.0)
        training.snapshot(1)
        assert training.meter.warning() is None
    training.commit(0)
    training.run(10, 12.0)
    training.commit(1)
    training.run(40, 12.0)
    training.snapshot(0)
    assert training.meter.warning() is not None


def test_behind_by_time_and_by_epochs() -> None:
    by_time = Training(every_seconds=20, every_epochs=0)
    by_time.run(500, 60.0)
    by_time.snapshot(0)
    assert by_time.meter.warning() is None
    by_time.run(1, 1.0)
    assert by_time.meter.warning() is not None
    by_epochs = Training(every_epochs=2)
    by_epochs.run(600, 60.0)
    by_epochs.snapshot(0)
    assert by_epochs.meter.warning() is None
    by_epochs.run(1, 1.0)
    assert by_epochs.meter.warning() is not None


def test_what_never_fell_due_is_not_behind() -> None:
    for policy in ({"every_steps": 10, "every_epochs": 0}, {"every_epochs": 0}):
        training = Training(**policy)
        training.run(500, 60.0)
        training.snapshot(0, "MEMORY")
        assert training.meter.warning() is None


def test_samples_are_a_second_apart_and_a_thousand_in_all() -> None:
    now = 0.0
    samples = StepSamples(lambda: now)
    picked = []
    for step in range(1, 10_001):
        now += 0.5 if step <= 5000 else 30.0
        if samples.picks(TrainingPosition(step=step, total_steps=10_000)):
            picked.append((step, now))
    assert 900 <= len(picked) <= 1000
    assert all(b[0] - a[0] >= 10 for a, b in pairwise(picked))
    assert all(b[1] - a[1] >= 1 for a, b in pairwise(picked))


def test_samples_of_a_short_training_are_a_second_apart() -> None:
    now = 0.0
    samples = StepSamples(lambda: now)
    picked = []
    for step in range(1, 101):
        now = step / 8
        if samples.picks(TrainingPosition(step=step, total_steps=100)):
            picked.append(step)
    assert picked == list(range(8, 101, 8))


def test_an_attempt_that_goes_on_at_an_earlier_step_has_samples_too() -> None:
    now = 0.0
    samples = StepSamples(lambda: now)
    now = 2.0
    assert samples.picks(TrainingPosition(step=900, total_steps=1000))
    now = 4.0
    assert samples.picks(TrainingPosition(step=500, total_steps=1000))
