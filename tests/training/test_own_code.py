"""A team's own data, models and schedules, in real training processes."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.training.processes import StartProcess, digests
from trainer_service.child.pipe import Failed, Finished
from trainer_service.slots import MemorySlots

OWN = "tests.training.own_code"
ALLOWED = {"allowed_packages": ("tests",)}


def own(
    factory: str,
    training: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **data: Any,
) -> TrainingStrategy:
    return parse_strategy(
        {
            "name": "own",
            "seed": 3,
            "data": {"source": f"{OWN}:{factory}", **data},
            "model": {"factory": f"{OWN}:noisy"},
            "loss": "cross_entropy",
            "optimizer": {"name": "Adam", "args": {"lr": 0.02}},
            "scheduler": {
                "name": "LambdaLR",
                "args": {"lr_lambda": f"{OWN}:falling"},
                "interval": "step",
            },
            "training": {"epochs": 2, "batch_size": 8, **(training or {})},
            "checkpoint": {"every_steps": 1, **(checkpoint or {})},
        }
    )


def final(slots: MemorySlots, folder: Path, strategy: TrainingStrategy) -> dict[str, str]:
    assert slots.newest is not None
    assert slots.newest.state["step"] == 14
    return digests(folder, slots, slots.newest, strategy)


@pytest.mark.parametrize(
    ("factory", "data"),
    [
        ("augmented", {"workers": 1}),
        ("augmented", {"workers": 2}),
        ("augmented", {"workers": 3}),
        ("weighted", {"sampling": "weighted"}),
        ("stream", {}),
        ("stream", {"args": {"keeps": True}}),
    ],
    ids=str,
)
def test_killed_it_ends_in_the_same_bytes(
    factory: str, data: dict[str, Any], start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    """Workers come and go with a resume, whatever draws in them."""
    strategy = own(factory, **data)
    process = start()
    process.train(own(factory, **{**data, "workers": 0}), **ALLOWED)
    assert isinstance(process.run(), Finished), process.said[-1]
    whole = final(slots, tmp_path / "whole", strategy)

    forget(slots)
    killed = start()
    killed.train(own(factory, **data), **ALLOWED)
    killed.until_snapshot(5)
    killed.kill()
    survivor = start()
    survivor.train(strategy, resume=slots.newest, **ALLOWED)
    assert isinstance(survivor.run(), Finished), survivor.said[-1]
    assert final(slots, tmp_path / "resumed", strategy) == whole


def forget(slots: MemorySlots) -> None:
    for content in (0, 1):
        slots.begun(content)


def test_a_rollback_leaves_out_what_went_wrong(
    start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    """Killed after a rollback it ends in the same bytes, for what is left out is state."""
    strategy = own(
        "poisoned",
        {"non_finite": "rollback"},
        {"every_steps": 2, "every_epochs": 0, "every_seconds": 0},
        args={"examples": [17]},
    )
    process = start()
    process.train(strategy, **ALLOWED)
    assert isinstance(process.run(), Finished), process.said[-1]
    warnings = [e.warning for e in process.events if e.HasField("warning")]
    assert [warning.reason for warning in warnings] == ["ROLLED_BACK"] * 2
    assert slots.newest is not None
    left_out = slots.newest.state["skipped"]["left_out"]
    assert len(left_out) == 2
    assert all((first - 1) % 2 == 0 and last - first < 2 for first, last in left_out)
    whole = final(slots, tmp_path / "whole", strategy)

    forget(slots)
    first = start()
    first.train(strategy, **ALLOWED)
    first.until_snapshot(left_out[0][1] + 2)
    first.kill()
    second = start("tests.training.dying_process", ("before the step is counted", "5"))
    second.train(strategy, resume=slots.newest, **ALLOWED)
    second.run()
    assert second.exit_code() == -signal.SIGKILL
    survivor = start()
    survivor.train(strategy, resume=slots.newest, **ALLOWED)
    assert isinstance(survivor.run(), Finished), survivor.said[-1]
    assert final(slots, tmp_path / "resumed", strategy) == whole


def test_steps_that_are_not_finite_are_skipped(start: StartProcess, slots: MemorySlots) -> None:
    process = start()
    process.train(own("poisoned", {"non_finite": "skip"}, args={"examples": [0, 30]}), **ALLOWED)
    assert isinstance(process.run(), Finished), process.said[-1]
    warnings = [e.warning for e in process.events if e.HasField("warning")]
    assert {warning.reason for warning in warnings} == {"STEP_SKIPPED"}
    assert slots.newest is not None
    assert slots.newest.state["skipped"]["steps"] == len(warnings)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("fail", "the loss is nan in epoch 0, batch 0 (step 1)"),
        ("skip", "every step is left out in epoch 0"),
        ("rollback", "every step is left out in epoch 0"),
    ],
)
def test_where_nothing_is_finite_it_fails(policy: str, message: str, start: StartProcess) -> None:
    process = start()
    process.train(
        own("poisoned", {"non_finite": policy}, args={"examples": list(range(52))}), **ALLOWED
    )
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "NON_FINITE_LOSS"
    if policy != "rollback":
        assert message in last.message


@pytest.mark.parametrize(
    ("factory", "data", "field", "text"),
    [
        ("without_position", {}, "data.source", "cannot be resumed exactly without state_dict"),
        ("without_digest", {}, "data.source", "no digest"),
        ("something_else", {}, "data.source", "made no LoadedData"),
        ("nothing", {}, "data.source", "cannot import"),
        ("stream", {"workers": 2}, "data.source", "data.workers must be 0"),
        ("stream", {"args": {"keep": True}}, "data.args.keep", "did you mean keeps?"),
        ("augmented", {"sampling": "weighted"}, "data.source", "no sample_weights"),
        ("augmented", {"sampling": "balanced"}, "data.source", "built-in data"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    factory: str, data: dict[str, Any], field: str, text: str, start: StartProcess
) -> None:
    process = start()
    process.train(own(factory, **data), **ALLOWED)
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "INVALID_STRATEGY"
    assert [name for name, _ in last.violations] == [field]
    assert text in last.message
    assert process.snapshots == []


def test_a_package_that_is_not_allowed_is_refused(start: StartProcess) -> None:
    process = start()
    process.train(own("augmented"))
    last = process.run()
    assert isinstance(last, Failed)
    assert "EVERSTEP_ALLOWED_PACKAGES" in last.message


def test_a_stream_that_ends_early_fails(start: StartProcess) -> None:
    process = start()
    process.train(own("short_stream"), **ALLOWED)
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "TRAINING_FAILED"
    assert "ended after 20 of the 52" in last.message


def test_the_how_to_s_code_trains(
    start: StartProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set and the module of the how-to, as they stand there."""
    document = Path(__file__).parents[2] / "docs" / "how-to" / "your-own-data-and-model.md"
    examples = re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
    package = tmp_path / "acme"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "data.py").write_text(next(e for e in examples if "# acme/data.py" in e))
    noise = next(e for e in examples if "class Noise" in e)
    (package / "models.py").write_text(
        f"{noise}\n\ndef noisy(input_shape, output_size):\n"
        "    return nn.Sequential(Noise(), nn.Linear(input_shape[0], output_size))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    strategy = own("augmented")
    strategy.data.source = "acme.data:augmented"
    strategy.model.factory = "acme.models:noisy"
    process = start()
    process.train(strategy, allowed_packages=("acme", "tests"))
    assert isinstance(process.run(), Finished), process.said[-1]
    assert set(process.snapshots[-1].content.state["generators"]) == {"noise"}
