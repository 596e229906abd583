"""A short run of `make chaos`: one trial, with the faults that matter most."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.cluster import CONTROL_PLANE, LEASE_SECONDS
from tests.chaos.faults import (
    CancelledAndResumed,
    ControlPlaneKilled,
    LinkCut,
    MachineSuspended,
    TrainerKilled,
    TrainingProcessKilled,
)
from tests.chaos.plan import Plan, Step, draw_plan
from tests.chaos.reference import uninterrupted
from tests.chaos.trial import Trial

SHORT = Plan(
    seed=0,
    trainers=2,
    operations=("brief", "brief"),
    steps=(
        Step(6, TrainingProcessKilled("operation 0", 0)),
        Step(2, LinkCut("control-plane to trainer-1", 0)),
        Step(2, MachineSuspended("trainer-1", 1.2 * LEASE_SECONDS)),
        Step(2, ControlPlaneKilled(CONTROL_PLANE, 0)),
        Step(2, TrainerKilled("trainer-2", 0)),
        Step(6, CancelledAndResumed("operation 1", 0)),
    ),
)


def test_every_promise_is_kept(tmp_path: Path) -> None:
    wanted = uninterrupted({*SHORT.operations}, tmp_path / "uninterrupted")
    report = Trial(SHORT, tmp_path / "trial", wanted).run()
    story = "\n".join(report.timeline)
    print(story)
    assert not any(report.violations.values()), story
    # Each fault found something to break; the training may be over before the last ones.
    assert report.faults.total() >= 5, story


def test_a_seed_draws_the_same_trial_again() -> None:
    plans = [draw_plan(seed) for seed in range(50)]
    assert plans == [draw_plan(seed) for seed in range(50)]
    assert len({plan.steps for plan in plans}) == 50
