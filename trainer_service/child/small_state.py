"""State that is no tensor, in JSON: exact, and back again in the same Python types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from everstep.errors import EverstepError, Reason

_TUPLE = "$tuple"
_COUNTER = "$counter"
_ITEMS = "$items"


def encode(value: Any) -> Any:
    """What canonical JSON can hold; types that JSON has no word for are tagged.

    Raises:
        EverstepError: TRAINING_FAILED for anything else, such as a function.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {_TUPLE: [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Counter):
        return {_COUNTER: [[encode(key), count] for key, count in sorted(value.items())]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {_ITEMS: [[encode(key), encode(item)] for key, item in value.items()]}
    raise EverstepError(
        Reason.TRAINING_FAILED,
        f"the training's state holds a {type(value).__name__}, which a checkpoint cannot keep; "
        "use numbers, strings, lists and dictionaries",
    )


def decode(value: Any) -> Any:
    """The value that `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(decode(item) for item in value[_TUPLE])
    if _COUNTER in value:
        return Counter({decode(key): count for key, count in value[_COUNTER]})
    if _ITEMS in value:
        return {decode(key): decode(item) for key, item in value[_ITEMS]}
    return {key: decode(item) for key, item in value.items()}
