"""Forks: another strategy goes on from a state, and what holds no longer is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from everstep.errors import EverstepError, Reason
from everstep.strategy import strategy_content
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.training import strategies
from tests.training.checks import same_weights
from tests.training.runs import Snapshot
from trainer_service.child.events import CancellationToken
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.training_pipeline import PipelineSettings, TrainingPipeline

#: Ten batches an epoch in three-batch steps: four steps, the last one a tail.
PARENT = strategies.digits()
AT_AN_END, IN_MID_EPOCH = 4, 6


@dataclass
class Run:
    """A training of a strategy, forked or not, with every step's snapshot."""

    strategy: TrainingStrategy
    snapshots: list[Snapshot] = field(default_factory=list)

    def train(self, context: TrainingResumeContext | None = None, **options: Any) -> Run:
        def keep(trigger: str, capture: Callable[[], TrainingResumeContext]) -> None:
            self.snapshots.append(Snapshot.of(trigger, capture()))

        pipeline = TrainingPipeline(
            PipelineSettings(Path("nowhere")), lambda *_: None, CancellationToken(), keep
        )
        pipeline.train_strategy(
            self.strategy, options.pop("overrides", {}), resume_context=context, **options
        )
        return self

    def at_step(self, step: int) -> Snapshot:
        return next(snapshot for snapshot in self.snapshots if snapshot.step == step)

    @property
    def final(self) -> Snapshot:
        return self.snapshots[-1]

    def fork(self, snapshot: Snapshot, strategy: TrainingStrategy) -> Run:
        return Run(strategy).train(snapshot.context(), forked_from=strategy_content(self.strategy))

    @property
    def learning_rates(self) -> dict[int, float]:
        return {snapshot.step: snapshot.learning_rate for snapshot in self.snapshots}


@pytest.fixture(scope="module")
def parent() -> Run:
    return Run(PARENT).train()


@pytest.mark.parametrize("step", [AT_AN_END, IN_MID_EPOCH])
def test_the_same_strategy_ends_in_the_same_bytes(parent: Run, step: int) -> None:
    forked = parent.fork(parent.at_step(step), strategies.digits(name="another"))
    assert forked.final.content() == parent.final.content()


def test_a_learning_rate_is_the_forks(parent: Run) -> None:
    """The moments go on; the schedule stands where the fork's own would have stood."""
    changed = strategies.digits(optimizer={"name": "AdamW", "args": {"lr": 0.002}})
    forked = parent.fork(parent.at_step(IN_MID_EPOCH), changed)
    wanted = Run(changed).train().learning_rates
    assert forked.learning_rates == {s: r for s, r in wanted.items() if s > IN_MID_EPOCH}
    steps = [
        float(value)
        for name, value in forked.final.tensors["optimizer"].items()
        if name.endswith("/step")
    ]
    assert set(steps) == {12.0}
    assert [record["epoch"] for record in forked.final.state["history"]] == [0, 1, 2]
    assert forked.final.state["history"][0] == parent.final.state["history"][0]


def test_weights_stand_still_at_learning_rate_zero(parent: Run) -> None:
    snapshot = parent.at_step(AT_AN_END)
    still = strategies.digits(
        model={"factory": "cnn", "args": {"channels": [4, 8], "dropout": 0.2}},
        optimizer={"name": "SGD", "args": {"lr": 0.0}},
    )
    forked = parent.fork(snapshot, still)
    before, after = snapshot.tensors["weights"], forked.final.tensors["weights"]
    trained = {name for name in before if "running" not in name and "num_batches" not in name}
    assert same_weights(
        {name: before[name] for name in trained}, {name: after[name] for name in trained}
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "CosineAnnealingLR", "args": {"T_max": 6}},
        {"name": "OneCycleLR", "args": {"max_lr": 0.03}, "interval": "step"},
        {
            "name": "SequentialLR",
            "args": {"milestones": [2]},
            "schedulers": [
                {"name": "LinearLR", "args": {"total_iters": 2}},
                {"name": "ExponentialLR", "args": {"gamma": 0.5}},
            ],
        },
    ],
    ids=lambda scheduler: scheduler["name"],
)
def test_more_epochs_on_a_schedule_of_that_length(parent: Run, scheduler: dict[str, Any]) -> None:
    """What a resume refuses, a fork does: the rates from here on are the longer schedule's."""
    longer = strategies.digits(
        scheduler=scheduler, training={"epochs": 6, "batch_size": 128, "accumulate": 3}
    )
    forked = parent.fork(parent.at_step(AT_AN_END), longer)
    wanted = Run(longer).train().learning_rates
    assert forked.final.step == 24
    assert forked.learning_rates == {s: r for s, r in wanted.items() if s > AT_AN_END}


def test_another_metric_begins_a_search_for_the_best_anew(parent: Run) -> None:
    snapshot = parent.at_step(8)
    assert snapshot.state["best"]["epoch"] is not None
    changed = strategies.digits(
        training={
            "epochs": 3,
            "batch_size": 128,
            "accumulate": 3,
            "early_stopping": {"monitor": "val_accuracy", "patience": 1},
        }
    )
    forked = parent.fork(snapshot, changed)
    assert forked.final.state["best"]["epoch"] == 2


def test_an_early_stop_is_not_inherited() -> None:
    stopped = Run(strategies.diabetes()).train()
    assert stopped.final.state["early_stopping"]["stopped"]
    forked = stopped.fork(stopped.final, strategies.diabetes())
    assert forked.final.step > stopped.final.step


@pytest.mark.parametrize(
    ("changes", "field_name"),
    [
        ({"seed": 8}, "seed"),
        ({"training": {"batch_size": 64}}, "training.batch_size"),
        ({"data": {"split": {"train": 0.8, "validation": 0.1, "test": 0.1}}}, "data"),
    ],
    ids=str,
)
def test_what_makes_the_batches_changes_at_an_epochs_end_only(
    parent: Run, changes: dict[str, Any], field_name: str
) -> None:
    strategy = strategies.digits(**changes)
    forked = parent.fork(parent.at_step(AT_AN_END), strategy)
    assert len(forked.final.state["history"]) == 3
    with pytest.raises(EverstepError) as refused:
        parent.fork(parent.at_step(IN_MID_EPOCH), strategy)
    assert refused.value.reason is Reason.INVALID_STRATEGY
    assert [violation.field for violation in refused.value.violations] == [field_name]


def test_a_model_that_the_weights_do_not_fit_is_refused(parent: Run) -> None:
    other = strategies.digits(model={"factory": "cnn", "args": {"channels": [4, 9]}})
    with pytest.raises(EverstepError, match="do not fit") as refused:
        parent.fork(parent.at_step(AT_AN_END), other)
    assert refused.value.reason is Reason.INVALID_STRATEGY


def test_nothing_left_to_train_is_refused(parent: Run) -> None:
    shorter = strategies.digits(training={"epochs": 1, "batch_size": 128, "accumulate": 3})
    with pytest.raises(EverstepError, match="ask for more"):
        parent.fork(parent.at_step(8), shorter)


def test_a_fork_that_is_killed_ends_in_the_same_bytes(parent: Run) -> None:
    changed = strategies.digits(
        optimizer={"name": "SGD", "args": {"lr": 0.05, "momentum": 0.9}},
        training={"epochs": 3, "batch_size": 128, "accumulate": 3, "ema_decay": 0.9},
    )
    forked = parent.fork(parent.at_step(AT_AN_END), changed)
    for snapshot in forked.snapshots:
        again = Run(changed).train(snapshot.context())
        assert again.final.content() == forked.final.content(), snapshot.step
