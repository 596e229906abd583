"""Strategies are read strictly: every fault is named by its path."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from everstep.errors import EverstepError, Reason
from everstep.strategy import (
    parse_strategy,
    read_strategy,
    resolve_strategy,
    strategy_content,
    strategy_digest,
    validate_message,
)
from everstep.training.v1.strategy_pb2 import TrainingStrategy

ROOT = Path(__file__).parents[2]

GOOD: dict[str, Any] = {
    "name": "digits",
    "data": {"source": "builtin:digits"},
    "model": {"factory": "mlp", "args": {"hidden": [8]}},
    "loss": "cross_entropy",
    "optimizer": {"name": "Adam", "args": {"lr": 0.001}},
    "training": {"epochs": 2, "batch_size": 8},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("optmizer", {}, "did you mean optimizer?"),
        ("optimizer.agrs", {}, "did you mean args?"),
        ("data.split.trian", 1, "did you mean train?"),
        ("training.epochs", "many", "expected a whole number, got 'many'"),
        ("training.epochs", 1.5, "expected a whole number"),
        ("training.epochs", -1, "expected a number from 0 on"),
        ("training.epochs", True, "expected a whole number, got True"),
        ("training.epochs", 0, "greater than or equal to 1"),
        ("training.deterministic", 1, "expected true or false"),
        ("training.gradient_clip", "1", "expected a number"),
        ("training.gradient_clip", float("nan"), "expected a number"),
        ("training", [1], "expected a mapping"),
        ("model", "mlp", "expected a mapping"),
        ("loss", 3, "expected a text"),
        ("name", "../digits", "does not match"),
        ("data.features", "a", "expected a list"),
        ("optimizer.args.lr", float("inf"), "expected a finite number"),
        ("scheduler", {"name": "StepLR", "interval": "batch"}, "must be in list"),
        ("training.precision", "float8", "must be in list"),
    ],
)
def test_a_fault_is_named_by_its_path(path: str, value: Any, said: str) -> None:
    with pytest.raises(EverstepError) as refused:
        parse_strategy(changed(path, value))
    error = refused.value
    assert error.reason is Reason.INVALID_STRATEGY
    assert "\n" not in error.message
    field = "scheduler.interval" if path == "scheduler" else path
    named = {violation.field: violation.description for violation in error.violations}
    assert list(named) == [field]
    assert said in named[field]


def test_all_faults_are_said_at_once() -> None:
    content = changed("training.epoch", 3) | {"seeds": 1}
    with pytest.raises(EverstepError) as refused:
        parse_strategy(content)
    assert [violation.field for violation in refused.value.violations] == [
        "training.epoch",
        "seeds",
    ]


def test_parts_of_a_split_add_up_to_one() -> None:
    with pytest.raises(EverstepError, match="must add up to 1"):
        parse_strategy(changed("data.split", {"train": 0.5, "validation": 0.1, "test": 0.1}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "is not valid YAML"),
        ("name: a\nname: b", "given twice"),
        ("- a", "a strategy is a mapping"),
        ("", "a strategy is a mapping"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_strategy(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(text)
    with pytest.raises(EverstepError, match=said) as refused:
        read_strategy(path)
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(EverstepError, match="there is no file"):
        read_strategy(tmp_path / "nowhere.yaml")
    with pytest.raises(EverstepError, match="cannot be read"):
        read_strategy(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EverstepError, match="cannot be read"):
        read_strategy(binary)


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(
        "{name: a, data: {source: 'builtin:digits'}, model: {factory: mlp}, loss: mse,\n"
        " optimizer: {name: Adam, args: {lr: 1e-3}}, training: {epochs: 1, batch_size: 1}}"
    )
    assert read_strategy(path).optimizer.args["lr"] == 0.001


@pytest.mark.parametrize("path", sorted((ROOT / "strategies").glob("*.yaml")), ids=lambda p: p.name)
def test_the_strategies_that_come_with_it_are_valid(path: Path) -> None:
    strategy = read_strategy(path)
    validate_message(strategy, Reason.INVALID_STRATEGY)
    assert resolve_strategy(strategy) == strategy


def test_the_digest_speaks_of_what_decides_the_bytes() -> None:
    digest = strategy_digest(parse_strategy(GOOD))
    assert strategy_digest(parse_strategy(changed("name", "other"))) == digest
    assert strategy_digest(parse_strategy(changed("checkpoint.every_steps", 5))) == digest
    assert strategy_digest(parse_strategy(changed("data.workers", 2))) == digest
    for path, value in (
        ("seed", 1),
        ("optimizer.args.lr", 0.002),
        ("training.epochs", 3),
        ("data.split", {"train": 0.8, "validation": 0.1, "test": 0.1}),
    ):
        assert strategy_digest(parse_strategy(changed(path, value))) != digest, path


def test_what_was_written_out_can_be_read_again() -> None:
    strategy = parse_strategy(changed("checkpoint.every_steps", 5) | {"seed": 3})
    assert parse_strategy(strategy_content(strategy)) == strategy


def test_defaults_are_filled_in() -> None:
    resolved = parse_strategy(GOOD)
    assert resolved.checkpoint.keep_last == 3
    assert resolved.checkpoint.every_epochs == 1
    assert resolved.training.deterministic
    assert resolved.training.accumulate == 1
    assert (resolved.data.split.train, resolved.data.split.test) == (0.7, 0.15)
    assert resolve_strategy(TrainingStrategy()).checkpoint.keep_best == 1


@pytest.mark.parametrize(
    ("place", "inner"),
    [("scheduler", "{name: StepLR}"), ("model", "1"), ("unknown", "1")],
)
@pytest.mark.parametrize("depth", [40, 5000])
def test_what_is_nested_too_deeply_is_refused(
    tmp_path: Path, place: str, inner: str, depth: int
) -> None:
    path = tmp_path / "strategy.yaml"
    opening = "{name: a, schedulers: [" if place == "scheduler" else "{args: ["
    path.write_text(f"{place}: {opening * depth}{inner}{']}' * depth}")
    with pytest.raises(EverstepError, match="nested too deeply") as refused:
        read_strategy(path)
    assert refused.value.reason is Reason.INVALID_STRATEGY
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: &itself {a: *itself}", "name: nested too deeply"),
        (
            "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 8}]\n" for n in range(1, 12)),
            "too many values",
        ),
    ],
)
def test_aliases_that_never_end_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(text)
    with pytest.raises(EverstepError, match=said):
        read_strategy(path)
