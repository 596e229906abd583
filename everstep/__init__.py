"""Everstep: training that never loses a step.

Client and AsyncClient start trainings, watch them, and take them up again; see
docs/how-to/from-python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep.sdk import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Whoever needs no client imports no gRPC.
    sdk = import_module("everstep.sdk")
    if name == "__all__":
        return ["__version__", *sdk.__all__]
    if name not in sdk.__all__:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    return getattr(sdk, name)
