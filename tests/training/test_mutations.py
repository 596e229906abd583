"""Every check fails where the piece that it speaks of is left out; every piece has a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from everstep.errors import EverstepError
from tests.training import checks, mutations
from tests.training.mutations import Mutation
from tests.training.runs import Laboratory
from tests.training.scenarios import EVERYTHING, KINDS_OF_STATE, OVERFITTING
from trainer_service.child.resume_context import TrainingResumeContext

#: The property of a test's report that the table at the end of a run is made of.
MUTATION = "mutation"
#: Fields of a context that another mutation than one of the context itself leaves out.
LEFT_OUT_OTHERWISE = {
    "stream_state": mutations.STREAM,
    "left_out": mutations.LEFT_OUT,
}
#: Fields of a context that are no state: without them nothing is restored at all.
NO_STATE = {"original_request", "parameter_names"}
#: What each check must not miss.
CAUGHT = {
    checks.accepts_a_context: (
        mutations.CONTEXT_IGNORED,
        mutations.CONTEXT_FORGOTTEN,
        mutations.STEP,
    ),
    checks.restores_weights: (mutations.WEIGHTS, mutations.CONTEXT_IGNORED, mutations.OVERRIDES),
    checks.restores_the_optimizer: (
        mutations.OPTIMIZER_STATE,
        mutations.OPTIMIZER_STEP,
        mutations.OPTIMIZER_MOMENTS,
    ),
    checks.goes_on_with_the_next_epoch: (mutations.EPOCH, mutations.CONTEXT_IGNORED),
    checks.goes_on_with_the_history: (
        mutations.HISTORY,
        mutations.BEST_METRIC,
        mutations.BEST_EPOCH,
    ),
    checks.starts_over_with_a_context: (
        mutations.CONTEXT_IGNORED,
        mutations.WEIGHTS,
        mutations.FIRST_EPOCH,
    ),
    checks.has_nothing_left_to_do: (
        mutations.EPOCH,
        mutations.WEIGHTS,
        mutations.BUFFERS,
        mutations.HISTORY,
        mutations.BEST_WEIGHTS,
        mutations.BEST_EPOCH,
        mutations.STEP,
    ),
    checks.goes_on_with_the_schedule: (
        mutations.SCHEDULER,
        mutations.SCHEDULER_POSITION,
        mutations.PLATEAU_BEST,
        mutations.OPTIMIZER_GROUPS,
    ),
    checks.keeps_the_best_weights: (
        mutations.BEST_WEIGHTS,
        mutations.BEST_METRIC,
        mutations.BEST_EPOCH,
        mutations.BEST_ALIASED,
        mutations.BEST_REPLACED,
        mutations.BEST_FROZEN,
    ),
    checks.trains_every_epoch: (mutations.FIRST_EPOCH, mutations.FIRST_STEP),
    checks.ends_in_the_same_bytes: (
        mutations.WEIGHTS,
        mutations.BUFFERS,
        mutations.BATCHES_TRACKED,
        mutations.OPTIMIZER_STATE,
        mutations.OPTIMIZER_STEP,
        mutations.OPTIMIZER_MOMENTS,
        mutations.OPTIMIZER_GROUPS,
        mutations.SCHEDULER,
        mutations.HISTORY,
        mutations.BEST_WEIGHTS,
        mutations.BEST_METRIC,
        mutations.BEST_EPOCH,
        mutations.STOPPING_COUNTER,
        mutations.STOPPING_BEST,
        mutations.STOPPED,
        mutations.STOP_REASON,
        mutations.RUNNING_LOSS,
        mutations.RUNNING_COUNT,
        mutations.EPOCH,
        mutations.BATCH,
        mutations.STEP,
        mutations.TRACE,
        mutations.SEEDS,
        mutations.ORDER,
    ),
    checks.reports_the_same_epochs: (
        mutations.RUNNING_LOSS,
        mutations.RUNNING_COUNT,
        mutations.BATCH,
    ),
    checks.stays_stopped: (mutations.STOPPED, mutations.STOP_REASON),
    checks.keeps_its_patience: (mutations.STOPPING_COUNTER, mutations.STOPPING_BEST),
    checks.applies_an_override: (mutations.OVERRIDES, mutations.APPLIED_OVERRIDES),
    checks.draws_the_same_for_every_example: (mutations.EXAMPLE_DRAWS, mutations.BATCH),
    checks.keeps_the_average: (mutations.AVERAGE, mutations.AVERAGE_COUNT),
    checks.keeps_the_scale: (mutations.SCALER, mutations.SCALER_GROWTH),
    checks.keeps_modes: (
        mutations.MODULES_EVALUATING,
        mutations.PARAMETERS_FROZEN,
        mutations.MEMORY_FORMATS,
    ),
    checks.keeps_generators: (mutations.GENERATORS, mutations.GENERATORS_OF_THE_AVERAGE),
    checks.keeps_the_position_in_a_stream: (mutations.STREAM, mutations.SEEK),
    checks.keeps_what_is_left_out: (
        mutations.SKIPPED,
        mutations.SKIPPED_IN_A_ROW,
        mutations.SKIPPED_BUFFERS,
        mutations.LEFT_OUT,
    ),
    checks.draws_by_weight: (mutations.SAMPLE_WEIGHTS,),
}


@pytest.mark.parametrize(
    ("check", "mutation"),
    [
        pytest.param(check, mutation, id=f"{check.__name__}-{mutation.name.replace(' ', '-')}")
        for check, caught in CAUGHT.items()
        for mutation in caught
    ],
)
def test_a_check_fails_without_the_piece(
    check: checks.Check, mutation: Mutation, record_property: Callable[[str, object], None]
) -> None:
    record_property(MUTATION, f"{mutation.name} | {check.__name__}")
    with pytest.raises((AssertionError, EverstepError)):
        check(Laboratory(mutation))


def test_every_check_and_every_mutation_is_listed() -> None:
    assert tuple(CAUGHT) == checks.CHECKS
    listed = {mutation.name for caught in CAUGHT.values() for mutation in caught}
    defined = {
        value.name
        for value in vars(mutations).values()
        if isinstance(value, Mutation) and value is not mutations.NOTHING
    }
    assert listed == defined


def test_every_field_of_a_context_is_left_out_by_a_mutation() -> None:
    """A new kind of state needs a mutation of its own, which a check must not miss."""
    lab = Laboratory()
    contexts = [
        snapshot.context()
        for scenario in (*KINDS_OF_STATE, EVERYTHING, OVERFITTING)
        for snapshot in lab.train(scenario).snapshots
    ]
    left_out = set(LEFT_OUT_OTHERWISE)
    for mutation in (m for caught in CAUGHT.values() for m in caught):
        for context in contexts:
            fresh = TrainingResumeContext(
                start_epoch=0,
                model_weights={n: t.clone().zero_() for n, t in context.model_weights.items()},
                optimizer_state={"state": {}, "param_groups": []},
                step=0,
            )
            changed = mutation.context(context, fresh)
            if changed is None:
                continue
            left_out |= {
                field.name
                for field in fields(context)
                if getattr(changed, field.name) is not getattr(context, field.name)
            }
    assert {field.name for field in fields(TrainingResumeContext)} - NO_STATE - left_out == set()
