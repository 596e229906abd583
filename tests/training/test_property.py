"""The promise as a property: whatever the training, wherever it is killed, the same bytes."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.training.runs import Laboratory
from tests.training.scenarios import (
    AVERAGED,
    BFLOAT16,
    EVERYTHING,
    FLOAT16,
    FREEZING,
    KEEPING,
    NOISY,
    ONLY_WORSE,
    OPTIMIZERS,
    OVERFITTING,
    SCHEDULES,
    SEEKING,
    SKIPPING,
    WEIGHTED,
    Scenario,
)
from tests.training.trials import describe, draw_trial, run_in_a_folder
from trainer_service.child.cadence import CheckpointPolicy

#: OneCycleLR has the length of its own scenario, CyclicLR wants an optimizer with momentum.
_NOT_DRAWN = ("OneCycleLR", "CyclicLR")
_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """One kind of state, with the optimizer, schedule and settings of others."""
    kind = draw(
        st.sampled_from(
            (
                AVERAGED, BFLOAT16, EVERYTHING, FLOAT16, FREEZING, KEEPING, NOISY, ONLY_WORSE,
                OVERFITTING, SEEKING, SKIPPING, WEIGHTED,
            )
        )
    )  # fmt: skip
    schedule = draw(st.sampled_from([s for s in SCHEDULES if s.name.split()[-1] not in _NOT_DRAWN]))
    return Scenario(
        **{
            **vars(kind),
            "name": f"{kind.name}, {schedule.name}",
            "optimizer": draw(st.sampled_from(OPTIMIZERS)).optimizer,
            "scheduler": schedule.scheduler,
            "scheduler_interval": schedule.scheduler_interval,
            "noisy": draw(st.booleans()),
            "ema_decay": draw(st.sampled_from((None, 0.5, 0.9))),
            "epochs": draw(st.integers(1, 3)),
            "batch_size": draw(st.sampled_from((7, 8, 26, 52))),
            "accumulate": draw(st.integers(1, 4)),
            "gradient_clip": draw(st.sampled_from((0.0, 0.3))),
            "patience": draw(st.sampled_from((None, 1, 2))),
            "seed": draw(st.integers(0, 1000)),
        }
    )


@settings(max_examples=200, **_SETTINGS)
@given(scenario=scenarios(), data=st.data())
def test_cut_anywhere_it_ends_in_the_same_bytes(scenario: Scenario, data: st.DataObject) -> None:
    """Within one process: every kind of state with every schedule and optimizer."""
    if scenario.non_finite == "skip" and scenario.batch_size * scenario.accumulate > 16:
        scenario = Scenario(**{**vars(scenario), "poisoned": ()})
    lab = Laboratory()
    whole = lab.train(scenario, checkpoint=CheckpointPolicy(every_epochs=0))
    snapshot = None
    for _ in range(data.draw(st.integers(1, 3), label="cuts")):
        policy = CheckpointPolicy(every_steps=data.draw(st.integers(1, 4), label="cadence"))
        run = (
            lab.train(scenario, checkpoint=policy)
            if snapshot is None
            else lab.resume(scenario, snapshot.context(), checkpoint=policy)
        )
        snapshot = run.snapshots[data.draw(st.integers(0, len(run.snapshots) - 1), label="cut")]
    assert snapshot is not None
    resumed = lab.resume(scenario, snapshot.context(), checkpoint=CheckpointPolicy(every_epochs=0))
    assert resumed.final.content() == whole.final.content()
    assert resumed.outcome == whole.outcome


# A trial takes seconds, so none is made smaller: it is described, to be run again.
@settings(max_examples=5, phases=(Phase.generate,), **_SETTINGS)
@given(draw=st.randoms(use_true_random=False))
def test_killed_anywhere_it_ends_in_the_same_bytes(draw: random.Random) -> None:
    """Real processes and real kills; many more with `make soak`."""
    trial = draw_trial(draw)
    outcome = run_in_a_folder(trial)
    assert outcome.differences == (), describe(trial)
