"""TrainingPipeline on real data: the resume context on its way, and exact at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.training import strategies
from tests.training.runs import Snapshot
from trainer_service.child.events import CancellationToken, EpochCompleted, Stop, TrainingStopped
from trainer_service.child.model_trainer import ModelTrainer
from trainer_service.child.model_trainer_config import ModelTrainerConfig
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.training_pipeline import PipelineSettings, TrainingPipeline
from trainer_service.strategies.data import LoadedData


class WatchedPipeline(TrainingPipeline):
    """Notes the context that each part of the chain is given."""

    given: dict[str, Any]
    #: What was evaluated on the held-out data.
    tested: list[tuple[ModelTrainer, LoadedData, ModelTrainerConfig]]

    def train_model(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The last of its parameters, however it is passed.
        self.given["train_model"] = kwargs.get("resume_context", args[-1])
        return super().train_model(*args, **kwargs)

    def evaluate(
        self, trainer: ModelTrainer, data: LoadedData, config: ModelTrainerConfig
    ) -> dict[str, float]:
        self.given["ModelTrainer"] = trainer.resume_context
        self.tested.append((trainer, data, config))
        return super().evaluate(trainer, data, config)


@dataclass
class Training:
    """One run of a pipeline, and what it said."""

    strategy: TrainingStrategy
    snapshots: list[Snapshot] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    tested: list[tuple[ModelTrainer, LoadedData, ModelTrainerConfig]] = field(default_factory=list)
    token: CancellationToken = field(default_factory=CancellationToken)
    #: Optimizer steps after which it is cancelled.
    cancel_after: int | None = None

    def run(
        self, context: TrainingResumeContext | None = None, overrides: dict[str, Any] | None = None
    ) -> Training:
        pipeline = WatchedPipeline(
            PipelineSettings(Path("nowhere")),
            progress_callback=self._note,
            cancellation_token=self.token,
            checkpoint_callback=self._keep,
        )
        pipeline.given, pipeline.tested = self.given, self.tested
        self.result = pipeline.train_strategy(
            self.strategy, overrides or {}, resume_context=context
        )
        return self

    def _keep(self, trigger: str, capture: Callable[[], TrainingResumeContext]) -> None:
        context = capture()
        self.snapshots.append(Snapshot.of(trigger, context))
        if context.step == self.cancel_after:
            self.token.request_stop(Stop.CANCEL)

    def _note(self, _position: Any, event: Any) -> None:
        if isinstance(event, EpochCompleted):
            self.epochs.append(event.epoch)


STRATEGIES = {
    "digits": strategies.digits(),
    "stocks": strategies.stocks(),
    "diabetes": strategies.diabetes(),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_after_any_step(name: str) -> None:
    whole = Training(STRATEGIES[name]).run()
    assert len(whole.snapshots) > 5
    assert any(metric.startswith("test_") for metric in whole.result["metrics"])
    for snapshot in whole.snapshots:
        resumed = Training(STRATEGIES[name]).run(snapshot.context())
        assert resumed.snapshots[-1].content() == whole.snapshots[-1].content(), snapshot.step
        assert resumed.result == whole.result, snapshot.step


def test_diabetes_is_ended_by_early_stopping() -> None:
    whole = Training(STRATEGIES["diabetes"]).run()
    assert whole.result["stopped_early"]
    assert whole.result["best_epoch"] < whole.result["epochs"] - 1 < 39
    assert "val_loss" in whole.result["stop_reason"]


def test_the_best_weights_are_what_the_held_out_data_is_evaluated_with() -> None:
    whole = Training(STRATEGIES["diabetes"]).run()
    ((trainer, data, config),) = whole.tested
    losses = {}
    for kind in ("best_weights", "weights"):
        trainer.state.model.load_state_dict(whole.snapshots[-1].tensors[kind])
        trainer.state.model.eval()
        with torch.no_grad():
            outputs = trainer.state.model(data.test.inputs.double())
            losses[kind] = float(trainer.loss(outputs, data.test.targets.double()))
    assert len(data.test) <= config.batch_size
    assert whole.result["metrics"]["test_loss"] == losses["best_weights"]
    assert losses["best_weights"] != losses["weights"]


def test_every_part_is_given_the_same_context() -> None:
    strategy = STRATEGIES["digits"]
    context = Training(strategy).run().snapshots[3].context()
    resumed = Training(strategy).run(context)
    assert resumed.given == {"train_model": context, "ModelTrainer": context}
    assert resumed.given["train_model"] is context
    assert resumed.given["ModelTrainer"] is context
    assert Training(strategy).run().given == {"train_model": None, "ModelTrainer": None}


def test_cancelled_and_resumed() -> None:
    strategy = STRATEGIES["digits"]
    whole = Training(strategy).run()
    cancelled = Training(strategy, cancel_after=5)
    with pytest.raises(TrainingStopped):
        cancelled.run()
    last = cancelled.snapshots[-1]
    assert (last.trigger, last.step) == ("CANCELLATION", 6)
    resumed = Training(strategy).run(last.context())
    assert resumed.snapshots[0].step == 7
    assert resumed.snapshots[-1].content() == whole.snapshots[-1].content()


def test_cancelled_in_an_evaluation_it_goes_on_with_the_evaluation() -> None:
    """The epoch's steps are done, its evaluation is not: neither is lost or done twice."""
    strategy = STRATEGIES["digits"]
    whole = Training(strategy).run()
    before_last = next(snapshot for snapshot in whole.snapshots if snapshot.step == 3)
    cancelled = Training(strategy)
    cancelled.token.request_stop(Stop.CANCEL)
    with pytest.raises(TrainingStopped):
        cancelled.run(before_last.context())
    (snapshot,) = cancelled.snapshots
    assert (snapshot.step, snapshot.state["batch"], snapshot.state["epoch"]) == (4, 10, 0)
    assert snapshot.state["history"] == []
    resumed = Training(strategy).run(snapshot.context())
    assert resumed.epochs == [0, 1, 2]
    assert resumed.snapshots[-1].content() == whole.snapshots[-1].content()


@pytest.mark.parametrize(
    ("strategy", "epochs"),
    [
        (strategies.stocks(), 5),
        (strategies.digits(), 6),
        (strategies.digits(scheduler={"args": {"T_max": 9}, "interval": "step"}), 6),
    ],
    ids=["OneCycleLR", "CosineAnnealingLR", "CosineAnnealingLR by steps"],
)
def test_more_epochs_are_refused_where_the_schedule_depends_on_them(
    strategy: TrainingStrategy, epochs: int
) -> None:
    snapshot = Training(strategy).run().snapshots[-1]
    with pytest.raises(EverstepError) as refused:
        Training(strategy).run(snapshot.context(), {"epochs": epochs})
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert [violation.field for violation in refused.value.violations] == ["overrides.epochs"]


def test_more_epochs_where_the_schedule_does_not_depend_on_them() -> None:
    short = strategies.digits(scheduler={"name": "StepLR", "args": {"step_size": 2}})
    long = strategies.digits(
        scheduler={"name": "StepLR", "args": {"step_size": 2}}, training={"epochs": 5}
    )
    snapshot = Training(short).run().snapshots[-1]
    extended = Training(short).run(snapshot.context(), {"epochs": 5})
    assert extended.epochs == [3, 4]
    whole = Training(long).run()
    assert extended.snapshots[-1].content()["tensors"] == whole.snapshots[-1].content()["tensors"]
    assert extended.result == whole.result


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "OneCycleLR", "args": {"max_lr": 0.02}, "interval": "step"},
        {"name": "CyclicLR", "args": {"base_lr": 0.001, "max_lr": 0.01}, "interval": "step"},
    ],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_a_learning_rate_that_the_schedule_would_overwrite_is_not_taken_in_silence(
    scheduler: dict[str, Any],
) -> None:
    strategy = strategies.digits(scheduler=scheduler, optimizer={"name": "SGD"})
    snapshot = Training(strategy).run().snapshots[2]
    with pytest.raises(EverstepError) as refused:
        Training(strategy).run(snapshot.context(), {"learning_rate": 0.5})
    assert refused.value.reason is Reason.INVALID_REQUEST


def test_early_stopping_needs_validation_data() -> None:
    strategy = strategies.diabetes(data={"split": {"train": 0.8, "validation": 0, "test": 0.2}})
    with pytest.raises(EverstepError) as refused:
        Training(strategy).run()
    assert refused.value.reason is Reason.INVALID_STRATEGY
    assert [violation.field for violation in refused.value.violations] == [
        "training.early_stopping.monitor"
    ]


def test_early_stopping_names_a_metric_that_there_is() -> None:
    strategy = strategies.diabetes(
        training={"early_stopping": {"monitor": "val_accuracy", "patience": 2}}
    )
    with pytest.raises(EverstepError) as refused:
        Training(strategy).run()
    assert refused.value.reason is Reason.INVALID_STRATEGY
    assert [violation.field for violation in refused.value.violations] == [
        "training.early_stopping.monitor"
    ]
