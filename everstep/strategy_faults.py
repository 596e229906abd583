"""What is wrong with a strategy's content before it is a message: unknown keys, wrong types."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from everstep.errors import FieldViolation

_WHOLE: Final = frozenset(
    {
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
    }
)
_UNSIGNED: Final = frozenset({FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64})
_LONG: Final = frozenset({FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64})
_STRUCT: Final = "google.protobuf.Struct"
#: Mappings and lists within each other: protobuf reads no message that is nested much deeper.
_MAX_DEPTH: Final = 24
#: Values under one key: an alias of YAML may stand for any number.
_MAX_VALUES: Final = 100_000


def find_faults(content: dict[Any, Any], descriptor: Descriptor) -> Iterator[FieldViolation]:
    """Every unknown key and every wrong type in plain content, named by its path.

    Args:
        content: As YAML or JSON gave it.
        descriptor: Of the message that it is meant to be.
    """
    for name, value in content.items():
        fault = _extent_fault(value)
        if fault:
            yield FieldViolation(str(name), fault)
            return
    yield from _message_faults(content, descriptor, "")


def _extent_fault(content: Any) -> str:
    """What forbids to descend into it by recursion; empty: nothing."""
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _MAX_DEPTH:
            return "nested too deeply"
        if seen > _MAX_VALUES:
            return "too many values"
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            waiting.extend((item, depth + 1) for item in items)
    return ""


def _message_faults(
    content: dict[Any, Any], descriptor: Descriptor, path: str
) -> Iterator[FieldViolation]:
    known = {field.name: field for field in descriptor.fields}
    for name, value in content.items():
        place = f"{path}.{name}" if path else str(name)
        field = known.get(name)
        if field is None:
            yield FieldViolation(place, f"unknown key{_nearest(str(name), list(known))}")
        elif field.is_repeated:
            yield from _list_faults(value, field, place)
        else:
            yield from _value_faults(value, field, place)


def _list_faults(value: Any, field: FieldDescriptor, place: str) -> Iterator[FieldViolation]:
    if not isinstance(value, list):
        yield _expected("a list", value, place)
        return
    for index, item in enumerate(value):
        yield from _value_faults(item, field, f"{place}[{index}]")


def _value_faults(value: Any, field: FieldDescriptor, place: str) -> Iterator[FieldViolation]:
    if field.message_type is not None:
        if not isinstance(value, dict):
            yield _expected("a mapping", value, place)
        elif field.message_type.full_name == _STRUCT:
            yield from _argument_faults(value, place)
        else:
            yield from _message_faults(value, field.message_type, place)
    elif field.type == FieldDescriptor.TYPE_STRING:
        if not isinstance(value, str):
            yield _expected("a text", value, place)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        if not isinstance(value, bool):
            yield _expected("true or false", value, place)
    elif field.type in _WHOLE:
        # Protobuf's own JSON writes numbers of 64 bits as texts.
        if field.type in _LONG and isinstance(value, str) and value.lstrip("-").isdecimal():
            value = int(value)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            yield _expected("a whole number", value, place)
        elif field.type in _UNSIGNED and value < 0:
            yield _expected("a number from 0 on", value, place)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        yield _expected("a number", value, place)


def _argument_faults(value: Any, place: str) -> Iterator[FieldViolation]:
    """Arguments are free in their names, but hold only what a message can carry."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(name, str):
                yield from _argument_faults(item, f"{place}.{name}")
            else:
                yield _expected("a text as key", name, place)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _argument_faults(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield _expected("a finite number", value, place)
    elif value is not None and not isinstance(value, bool | int | float | str):
        yield _expected("a number, a text, true or false", value, place)


def _expected(wanted: str, value: Any, place: str) -> FieldViolation:
    got = "nothing" if value is None else repr(value)
    return FieldViolation(place, f"expected {wanted}, got {got[:60]}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
