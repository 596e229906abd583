"""Everstep: training that never loses a step.

Client and AsyncClient start trainings, watch them and take them up again.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from everstep.sdk import *  # noqa: F403
else:
    # Whoever needs no client, such as the training process, imports no gRPC.
    def __getattr__(name: str) -> Any:
        sdk = import_module("everstep.sdk")
        if name == "__all__":
            return ["__version__", *sdk.__all__]
        if name not in sdk.__all__:
            raise AttributeError(f"module 'everstep' has no attribute {name!r}")
        return getattr(sdk, name)

    def __dir__() -> list[str]:
        return __getattr__("__all__")
