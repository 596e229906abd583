"""The state machine of operations: what the contract says, against the services, draw after draw.

EVERSTEP_TEST_ROUNDS=N draws so many rounds instead of the few of the suite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.control_plane.operation_machine import OperationMachine
from tests.control_plane.operation_scene import Laboratory

ROUNDS = int(os.environ.get("EVERSTEP_TEST_ROUNDS", "4"))
#: Examples of a round resemble each other after the first few: rounds have seeds of their own.
EXAMPLES = 8
STEPS = 25


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    laboratory = Laboratory(tmp_path_factory.mktemp("operations"))
    yield laboratory
    laboratory.close()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_is_asked_and_dies_operations_are_where_the_contract_says(
    laboratory: Laboratory, number: int
) -> None:
    # An example takes most of a second, so none is made smaller: it is told, to be run again.
    drawn = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    def machine() -> OperationMachine:
        return OperationMachine(laboratory)

    run_state_machine_as_test(machine, settings=drawn)
