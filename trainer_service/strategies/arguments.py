"""Arguments from a strategy, checked against what takes them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from everstep.errors import EverstepError, FieldViolation, Reason

T = TypeVar("T")
_OWN: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def refused(field: str, description: str) -> EverstepError:
    """INVALID_STRATEGY for one field."""
    return EverstepError(
        Reason.INVALID_STRATEGY,
        f"the strategy is refused: {field}: {description}",
        violations=[FieldViolation(field, description)],
    )


def choose(field: str, name: str, choices: Iterable[str]) -> str:
    """The name, when it is one of the choices.

    Raises:
        EverstepError: INVALID_STRATEGY, with the choices and the nearest one.
    """
    known = sorted(choices)
    if name in known:
        return name
    raise refused(
        field, f"there is no {name!r}{_nearest(name, known)}; there are {', '.join(known)}"
    )


def plain_arguments(struct: Struct) -> dict[str, Any]:
    """A Struct in Python's types; its numbers are doubles, whole ones become ints."""
    return {
        name: _whole(value) for name, value in sorted(json_format.MessageToDict(struct).items())
    }


def call_with(
    field: str, factory: Callable[..., T], given: tuple[Any, ...], arguments: dict[str, Any]
) -> T:
    """Calls a factory; what it does not take, or refuses, is INVALID_STRATEGY.

    Args:
        field: Where the arguments stand, as in `model.args`.
        given: What is passed besides them.
    """
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        accepted = [
            name
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ][len(given) :]
        for name in arguments:
            if name not in accepted:
                raise refused(
                    f"{field}.{name}",
                    f"unknown argument{_nearest(name, accepted)}; there are "
                    f"{', '.join(accepted) or 'none'}",
                )
    try:
        return factory(*given, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise refused(field, " ".join(str(error).split()) or type(error).__name__) from None


def is_own(name: str) -> bool:
    """Whether a name is that of a team's own code, `package.module:factory`."""
    return _OWN.fullmatch(name) is not None and not name.startswith("builtin:")


def import_own(field: str, name: str, allowed_packages: tuple[str, ...]) -> Any:
    """What `package.module:factory` names, where the trainer's settings allow the package.

    Raises:
        EverstepError: INVALID_STRATEGY.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] not in allowed_packages:
        raise refused(
            field,
            f"this trainer may not import {module_name}; add its package to "
            "EVERSTEP_ALLOWED_PACKAGES",
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise refused(field, f"cannot import {name}: {error}") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value
