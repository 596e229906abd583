"""A strategy as flat names and values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Value = bool | int | float | str


def hyperparameters(content: Mapping[str, Any]) -> dict[str, Value]:
    """As in `optimizer.args.lr`; a list is JSON."""
    return dict(_flat("", content))


def _flat(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value
        elif value is not None:
            yield f"{prefix}{name}", json.dumps(value)
