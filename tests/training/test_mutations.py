"""Every check fails where the piece that it speaks of is left out; every piece has a check."""

from __future__ import annotations

import pytest

from everstep.errors import EverstepError
from tests.training import checks, mutations
from tests.training.mutations import Mutation
from tests.training.runs import Laboratory

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
    checks.keeps_generators: (mutations.GENERATORS,),
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
def test_a_check_fails_without_the_piece(check: checks.Check, mutation: Mutation) -> None:
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
