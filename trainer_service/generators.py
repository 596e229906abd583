"""Random generators of a team's own code, kept by every checkpoint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from everstep.errors import EverstepError, Reason

_registered: dict[str, Any] = {}


def register_generator(name: str, generator: Any) -> None:
    """Makes a generator's position part of every checkpoint.

    For a generator that lives as long as the training and is drawn from in the training process
    itself: in a model's forward pass, say. Whatever draws from the global generators, or from the
    one that a data set's `example(index, generator)` is given, needs no registration.

    Args:
        name: Its name in the checkpoint.
        generator: A torch.Generator, numpy.random.Generator or random.Random.

    Raises:
        EverstepError: INVALID_REQUEST for anything else, or a name that is taken.
    """
    generator_state(generator)
    if _registered.get(name, generator) is not generator:
        raise EverstepError(
            Reason.INVALID_REQUEST,
            f"two generators are registered as {name!r}; give each a name of its own",
        )
    _registered[name] = generator


def forget_generators() -> None:
    """Forgets every registered generator: the model is about to be built anew."""
    _registered.clear()


def registered_generators() -> tuple[Any, ...]:
    """Every registered generator."""
    return tuple(_registered.values())


def generator_states() -> dict[str, Any]:
    """The position of every registered generator, for JSON."""
    return {name: generator_state(generator) for name, generator in sorted(_registered.items())}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Puts every registered generator where a checkpoint's was.

    Raises:
        EverstepError: ENVIRONMENT_MISMATCH when other generators are registered than then.
    """
    if states.keys() != _registered.keys():
        raise EverstepError(
            Reason.ENVIRONMENT_MISMATCH,
            f"the checkpoint holds the generators {', '.join(sorted(states)) or 'none'}, the code "
            f"registers {', '.join(sorted(_registered)) or 'none'}; resume with the code that "
            "made it",
            metadata={"differences": "generators"},
        )
    for name, state in states.items():
        _set_state(_registered[name], state)


def generator_state(generator: Any) -> dict[str, Any]:
    """Where one generator is."""
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"python": [version, list(words), gauss]}
    if hasattr(generator, "bit_generator"):
        return {"numpy": _texts(generator.bit_generator.state)}
    if hasattr(generator, "get_state") and hasattr(generator, "manual_seed"):
        return {"torch": bytes(generator.get_state().tolist()).hex()}
    raise EverstepError(
        Reason.INVALID_REQUEST,
        f"{type(generator).__name__} is no generator that can be kept; register a "
        "torch.Generator, a numpy.random.Generator or a random.Random",
    )


def _set_state(generator: Any, state: Mapping[str, Any]) -> None:
    if "python" in state:
        version, words, gauss = state["python"]
        generator.setstate((version, tuple(words), gauss))
    elif "numpy" in state:
        generator.bit_generator.state = _numbers(state["numpy"])
    else:
        import torch

        generator.set_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))


def _texts(state: Any) -> Any:
    """Numpy's state in JSON: its whole numbers have up to 128 bits, its arrays are words."""
    if isinstance(state, Mapping):
        return {name: _texts(value) for name, value in state.items()}
    if hasattr(state, "dtype"):
        return {"$array": [str(state.dtype), *(str(word) for word in state.ravel())]}
    return {"$int": str(state)} if isinstance(state, int) else state


def _numbers(state: Any) -> Any:
    if not isinstance(state, Mapping):
        return state
    if "$int" in state:
        return int(state["$int"])
    if "$array" in state:
        import numpy

        dtype, *words = state["$array"]
        return numpy.array([int(word) for word in words], dtype=dtype)
    return {name: _numbers(value) for name, value in state.items()}
