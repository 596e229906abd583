"""What must be seen of a resumed training, check by check.

Each check is given the laboratory that it trains in, so that the same check can be run where one
restored piece is left out: there it must fail (see test_mutations.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from tests.training.runs import Laboratory, digest
from tests.training.scenarios import (
    AVERAGED,
    EVERYTHING,
    FLOAT16,
    FREEZING,
    KEEPING,
    NOISY,
    ONLY_WORSE,
    OVERFITTING,
    PLAIN,
    SCHEDULES,
    SEEKING,
    SKIPPING,
    WEIGHTED,
    AugmentedExamples,
    Scenario,
)
from trainer_service.child.history import EpochRecord

Check = Callable[[Laboratory], None]

#: Learning rate 0, as an override of a resume.
STANDING_STILL = {"overrides": {"learning_rate": 0.0}}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether every byte is the same."""
    return {name: digest(tensor) for name, tensor in one.items()} == {
        name: digest(tensor) for name, tensor in other.items()
    }


def accepts_a_context(lab: Laboratory) -> None:
    """1. A trainer takes a context and goes on from it; without one it trains as always."""
    whole = lab.train(PLAIN)
    assert whole.trainer.resume_context is None
    assert whole.snapshots[0].step == 1
    context = whole.at_step(10).context()
    resumed = lab.resume(PLAIN, context)
    assert resumed.trainer.resume_context is context
    assert resumed.snapshots[0].step == 11


def restores_weights(lab: Laboratory) -> None:
    """2. With learning rate 0 after the resume, the final weights are the checkpoint's."""
    snapshot = lab.train(PLAIN).at_step(10)
    resumed = lab.resume(PLAIN, snapshot.context(), **STANDING_STILL)
    assert resumed.final.step == PLAIN.epochs * PLAIN.steps_per_epoch
    assert resumed.final.learning_rate == 0.0
    assert same_weights(resumed.final.tensors["weights"], snapshot.tensors["weights"])


def restores_the_optimizer(lab: Laboratory) -> None:
    """3. Adam after 3 steps, resumed for k more: it counts 3 + k, its moments are the same."""
    whole = lab.train(PLAIN)
    resumed = lab.resume(PLAIN, whole.at_step(3).context())
    more = len(resumed.snapshots) - 1
    assert more == PLAIN.epochs * PLAIN.steps_per_epoch - 3 - 1
    for step in (4, 9, whole.final.step):
        optimizer = resumed.at_step(step).tensors["optimizer"]
        counters = {float(value) for name, value in optimizer.items() if name.endswith("/step")}
        assert counters == {float(step)}
        assert same_weights(optimizer, whole.at_step(step).tensors["optimizer"])


def goes_on_with_the_next_epoch(lab: Laboratory) -> None:
    """4. Start 3 of 5: epochs 3 and 4. Start 2 of 3: epoch 2 alone."""
    five = lab.train(replace(PLAIN, epochs=5))
    assert lab.resume(replace(PLAIN, epochs=5), five.at_epoch(3).context()).epochs == [3, 4]
    three = lab.train(replace(PLAIN, epochs=3))
    assert lab.resume(replace(PLAIN, epochs=3), three.at_epoch(2).context()).epochs == [2]


def goes_on_with_the_history(lab: Laboratory) -> None:
    """5. Three epochs before, resumed to five: five entries, the first three unchanged."""
    scenario = replace(EVERYTHING, epochs=5)
    snapshot = lab.train(scenario).at_epoch(3)
    before = tuple(EpochRecord(**record) for record in snapshot.state["history"])
    # A best value that no later epoch reaches shows whether the epochs before still count.
    context = replace(snapshot.context(), best_val_loss=-1.0, best_epoch=1)
    resumed = lab.resume(scenario, context)
    assert len(before) == 3
    assert resumed.outcome.history[:3] == before
    assert [record.epoch for record in resumed.outcome.history] == [0, 1, 2, 3, 4]
    assert resumed.final.state["history"][:3] == snapshot.state["history"]
    assert (resumed.outcome.best_value, resumed.outcome.best_epoch) == (-1.0, 1)


def starts_over_with_a_context(lab: Laboratory) -> None:
    """6. Start 0 with a context: every epoch runs, from the context's weights."""
    other = lab.train(PLAIN, initialisation=2)
    beginning = replace(
        other.at_step(1).context(),
        start_epoch=0,
        start_batch=0,
        step=0,
        epoch_loss_sum=0.0,
        epoch_examples=0,
        model_weights=PLAIN.model(2).state_dict(),
        optimizer_state={**other.at_step(1).context().optimizer_state, "state": {}},
    )
    resumed = lab.resume(PLAIN, beginning)
    assert resumed.epochs == [0, 1, 2, 3]
    assert same_weights(resumed.final.tensors["weights"], other.final.tensors["weights"])


def has_nothing_left_to_do(lab: Laboratory) -> None:
    """7. Start n of n: no epoch; a success with the metrics before, and the same weights."""
    for scenario in (PLAIN, EVERYTHING):
        whole = lab.train(scenario)
        resumed = lab.resume(scenario, whole.final.context())
        assert resumed.epochs == []
        assert resumed.outcome == whole.outcome
        assert resumed.final.content() == whole.final.content()


def goes_on_with_the_schedule(lab: Laboratory) -> None:
    """8. The learning rates of all steps are those of the uninterrupted training."""
    for scenario in SCHEDULES:
        whole = lab.train(scenario)
        assert len(set(whole.learning_rates.values())) > 1, scenario.name
        for snapshot in whole.snapshots[::3]:
            resumed = lab.resume(scenario, snapshot.context())
            wanted = {
                step: rate for step, rate in whole.learning_rates.items() if step > snapshot.step
            }
            rates = resumed.learning_rates
            assert {step: rate for step, rate in rates.items() if step > snapshot.step} == wanted


def keeps_the_best_weights(lab: Laboratory) -> None:
    """9. A worse epoch does not replace the best weights, a better one does; they are copies."""
    whole = lab.train(ONLY_WORSE)
    best_epoch = whole.outcome.best_epoch
    assert best_epoch is not None
    assert best_epoch < ONLY_WORSE.epochs - 2
    at_best = whole.at_epoch(best_epoch + 1)
    assert same_weights(at_best.tensors["best_weights"], at_best.tensors["weights"])

    worse = lab.resume(ONLY_WORSE, at_best.context())
    assert (worse.outcome.best_epoch, worse.outcome.best_value) == (
        best_epoch,
        whole.outcome.best_value,
    )
    assert same_weights(
        worse.final.tensors.get("best_weights", {}), at_best.tensors["best_weights"]
    )
    assert not same_weights(worse.final.tensors["weights"], at_best.tensors["weights"])

    better = lab.resume(ONLY_WORSE, replace(at_best.context(), best_val_loss=math.inf))
    assert better.outcome.best_epoch == best_epoch + 1
    now = better.at_epoch(best_epoch + 2).tensors
    assert same_weights(now["best_weights"], now["weights"])
    assert same_weights(better.final.tensors["best_weights"], now["weights"])


def trains_every_epoch(lab: Laboratory) -> None:
    """10. Without a context: epochs 0 to n-1, every step of them."""
    for epochs in (1, 3):
        run = lab.train(replace(PLAIN, epochs=epochs))
        assert run.epochs == list(range(epochs))
        steps = range(1, epochs * PLAIN.steps_per_epoch + 1)
        assert sorted({snapshot.step for snapshot in run.snapshots}) == list(steps)


def ends_in_the_same_bytes(lab: Laboratory, *scenarios: Scenario) -> None:
    """Resumed after any step, a training ends in the bytes of the uninterrupted one."""
    for scenario in scenarios or (EVERYTHING, OVERFITTING, SCHEDULES[6]):
        whole = lab.train(scenario)
        for snapshot in whole.snapshots:
            resumed = lab.resume(scenario, snapshot.context())
            assert resumed.final.content() == whole.final.content(), (scenario.name, snapshot.step)
            assert resumed.outcome == whole.outcome, (scenario.name, snapshot.step)


def reports_the_same_epochs(lab: Laboratory) -> None:
    """The metrics of an epoch that was cut in two are those of the whole epoch."""
    whole = lab.train(EVERYTHING)
    for snapshot in whole.snapshots:
        resumed = lab.resume(EVERYTHING, snapshot.context())
        assert resumed.outcome.history == whole.outcome.history, snapshot.step


def stays_stopped(lab: Laboratory) -> None:
    """A training that early stopping has ended stays ended, and says why."""
    whole = lab.train(OVERFITTING)
    assert whole.outcome.stopped_early
    assert len(whole.outcome.history) < OVERFITTING.epochs
    resumed = lab.resume(OVERFITTING, whole.final.context())
    assert resumed.epochs == []
    assert resumed.outcome == whole.outcome
    assert "val_loss" in resumed.outcome.stop_reason


def keeps_its_patience(lab: Laboratory) -> None:
    """Early stopping ends a resumed training at the same epoch, wherever it was cut."""
    whole = lab.train(OVERFITTING)
    last = whole.outcome.history[-1].epoch
    for epoch in range(1, last + 1):
        resumed = lab.resume(OVERFITTING, whole.at_epoch(epoch).context())
        assert resumed.epochs == list(range(epoch, last + 1)), epoch


def applies_an_override(lab: Laboratory) -> None:
    """A learning rate that a resume asks for holds, once, after the checkpoint's was loaded."""
    asked = {"overrides": {"learning_rate": 0.25}}
    plain = lab.resume(PLAIN, lab.train(PLAIN).at_step(5).context(), **asked)
    assert {rate for step, rate in plain.learning_rates.items() if step > 5} == {0.25}
    # Where a schedule goes on from it, a snapshot of that run holds it already.
    scheduled = lab.resume(EVERYTHING, lab.train(EVERYTHING).at_epoch(1).context(), **asked)
    assert scheduled.snapshots[0].learning_rate == 0.25
    again = lab.resume(EVERYTHING, scheduled.at_epoch(3).context(), **asked)
    assert again.final.content() == scheduled.final.content()


def draws_the_same_for_every_example(lab: Laboratory) -> None:
    """A data set that draws random numbers draws the same, whatever process asks, and when."""
    train, _ = PLAIN.data()
    augmented = AugmentedExamples(train.inputs, train.targets)
    whole = lab.train(PLAIN, examples=augmented)
    assert whole.final.content() != lab.train(PLAIN).final.content()
    for step in (3, 10, 17):
        resumed = lab.resume(PLAIN, whole.at_step(step).context(), examples=augmented)
        assert resumed.final.content() == whole.final.content(), step


def keeps_the_average(lab: Laboratory) -> None:
    """The moving average goes on, and is what is evaluated and kept as best."""
    whole = lab.train(AVERAGED)
    final = whole.final.tensors
    assert not same_weights(final["average_weights"], final["weights"])
    best = {f"module.{name}": tensor for name, tensor in final["best_weights"].items()}
    at_best = whole.at_epoch((whole.outcome.best_epoch or 0) + 1).tensors["average_weights"]
    assert same_weights(best, {k: v for k, v in at_best.items() if k != "n_averaged"})
    ends_in_the_same_bytes(lab, AVERAGED)


def keeps_the_scale(lab: Laboratory) -> None:
    """The scale of float16 gradients and its growth go on."""
    whole = lab.train(FLOAT16)
    assert whole.final.state["scaler"]["scale"] < 65536.0
    ends_in_the_same_bytes(lab, FLOAT16)


def keeps_modes(lab: Laboratory) -> None:
    """What the training froze, sent to evaluation or laid out otherwise stays so."""
    modes = lab.train(FREEZING).final.state["modes"]
    assert all(modes.values())
    ends_in_the_same_bytes(lab, FREEZING)


def keeps_generators(lab: Laboratory) -> None:
    """Registered generators go on from where they were."""
    ends_in_the_same_bytes(lab, NOISY, replace(NOISY, ema_decay=0.9))


def keeps_the_position_in_a_stream(lab: Laboratory) -> None:
    """A stream goes on with its next example, whether it seeks or keeps its own state."""
    ends_in_the_same_bytes(lab, SEEKING, KEEPING)


def keeps_what_is_left_out(lab: Laboratory) -> None:
    """Steps that are not finite are left out, counted, and leave no trace in the weights."""
    whole = lab.train(SKIPPING)
    assert whole.final.state["skipped"] == {"steps": 4, "in_a_row": 0, "left_out": []}
    for tensor in whole.final.tensors["weights"].values():
        assert bool(torch.isfinite(tensor).all())
    for snapshot in whole.snapshots:
        resumed = lab.resume(SKIPPING, snapshot.context())
        for now, then in zip(
            resumed.snapshots, whole.snapshots[-len(resumed.snapshots) :], strict=True
        ):
            assert now.state["skipped"] == then.state["skipped"]
    left = lab.train(PLAIN, leave_out=(3, 9))
    assert left.final.state["skipped"] == {"steps": 7, "in_a_row": 0, "left_out": [[3, 9]]}
    assert lab.resume(PLAIN, left.at_step(5).context()).final.content() == left.final.content()


def draws_by_weight(lab: Laboratory) -> None:
    """Weighted draws are the same after a resume, and follow the weights."""
    ends_in_the_same_bytes(lab, WEIGHTED)


CHECKS: tuple[Check, ...] = (
    accepts_a_context,
    restores_weights,
    restores_the_optimizer,
    goes_on_with_the_next_epoch,
    goes_on_with_the_history,
    starts_over_with_a_context,
    has_nothing_left_to_do,
    goes_on_with_the_schedule,
    keeps_the_best_weights,
    trains_every_epoch,
    ends_in_the_same_bytes,
    reports_the_same_epochs,
    stays_stopped,
    keeps_its_patience,
    applies_an_override,
    draws_the_same_for_every_example,
    keeps_the_average,
    keeps_the_scale,
    keeps_modes,
    keeps_generators,
    keeps_the_position_in_a_stream,
    keeps_what_is_left_out,
    draws_by_weight,
)
