"""Strategies, given in whatever form one has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from everstep.errors import Reason
from everstep.strategy import (
    parse_strategy,
    read_strategy,
    resolve_strategy,
    strategy_content,
    strategy_digest,
    validate_message,
)
from everstep.training.v1.strategy_pb2 import TrainingStrategy


class Strategy:
    """What is trained and how: checked strictly, completed with defaults, never changed.

    Args:
        source: A mapping as in the YAML file, the path of such a file, another strategy, or the
            contract's message.

    Raises:
        InvalidStrategy: With the fields that are refused.
    """

    def __init__(self, source: StrategySource) -> None:
        self._message = _read(source)

    @property
    def name(self) -> str:
        """As declared."""
        return self._message.name

    @property
    def content(self) -> dict[str, Any]:
        """Plain dicts and lists, in the names of the YAML file."""
        return _with_whole_numbers(strategy_content(self._message))

    @property
    def digest(self) -> str:
        """BLAKE3, in hexadecimal, of what decides the bytes of a training."""
        return strategy_digest(self._message)

    def changed(self, changes: Mapping[str, Any]) -> Strategy:
        """Another strategy with some things otherwise, as in `{"training": {"epochs": 40}}`.

        Mappings are merged; anything else takes the place of what was there, None removes it.

        Raises:
            InvalidStrategy: With the fields that are refused.
        """
        return Strategy(_merged(self.content, changes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Strategy) and self._message == other._message

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Strategy({self.name!r}, digest={self.digest[:12]})"


#: A strategy, or what one is made of; a text is the path of a YAML or JSON file.
StrategySource: TypeAlias = Strategy | Mapping[str, Any] | str | os.PathLike[str] | TrainingStrategy


def changed_strategy(
    message: TrainingStrategy, changes: Mapping[str, Any] | None
) -> TrainingStrategy:
    """The strategy of an operation with some things otherwise; see `Strategy.changed`."""
    return stored_strategy(message).changed(changes or {})._message


def stored_strategy(message: TrainingStrategy) -> Strategy:
    """The strategy of an operation, which was checked when it was created."""
    strategy = Strategy.__new__(Strategy)
    strategy._message = message
    return strategy


def strategy_message(source: StrategySource) -> TrainingStrategy:
    """The contract's message, resolved and valid.

    Raises:
        InvalidStrategy: With the fields that are refused.
    """
    return Strategy(source)._message


def _read(source: StrategySource) -> TrainingStrategy:
    if isinstance(source, Strategy):
        return source._message
    if isinstance(source, TrainingStrategy):
        resolved = resolve_strategy(source)
        validate_message(resolved, Reason.INVALID_STRATEGY)
        return resolved
    if isinstance(source, str | os.PathLike):
        return read_strategy(Path(source))
    return parse_strategy(dict(source))


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for name, value in changes.items():
        there = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(there, Mapping):
            merged[name] = _merged(there, value)
        else:
            merged[name] = value
    return merged


def _with_whole_numbers(content: dict[str, Any]) -> dict[str, Any]:
    """As a person writes it: protobuf gives long integers as texts, and arguments as floats."""
    content["seed"] = int(content.get("seed", 0))
    content["checkpoint"]["every_steps"] = int(content["checkpoint"].get("every_steps", 0))
    readable: dict[str, Any] = _arguments(content, within=False)
    return readable


def _arguments(value: Any, within: bool) -> Any:
    if isinstance(value, dict):
        return {name: _arguments(item, within or name == "args") for name, item in value.items()}
    if isinstance(value, list):
        return [_arguments(item, within) for item in value]
    return int(value) if within and isinstance(value, float) and value.is_integer() else value
