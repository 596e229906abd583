"""The simulation notices when a mechanism of the services is left out."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.schedule import Schedule

#: Schedules that each mutation is given to show in; most need one to three.
WITHIN = 30


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mechanism_left_out_breaks_a_promise(mutation: Mutation) -> None:
    with mutation.made():
        assert any(Schedule(mutation.plan(seed)).run().broken for seed in range(WITHIN))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_same_schedules_hold_when_nothing_is_left_out(mutation: Mutation) -> None:
    broken = [Schedule(mutation.plan(seed)).run().broken for seed in range(2)]
    assert broken == [[], []]
