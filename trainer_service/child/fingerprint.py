"""What must be the same for two runs to compute the same bytes."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping

import numpy as np
import torch

from everstep import __version__
from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import SchedulerDeclaration, TrainingStrategy
from trainer_service.child.devices import CPU, Device
from trainer_service.child.randomness import RANDOM_SCHEME
from trainer_service.provenance import cpu_model, everstep_code, own_code
from trainer_service.strategies.arguments import is_own, plain_arguments

#: Recorded, but free to differ.
_FREE = frozenset({"everstep"})
_VARIABLES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_")


def fingerprint(strategy: TrainingStrategy, device: Device = CPU) -> dict[str, str]:
    """This process's environment, once its threads, determinism and device are set."""
    return {
        "everstep": __version__,
        "everstep_code": everstep_code(),
        "own_code": own_code(own_packages(strategy)),
        "random_scheme": RANDOM_SCHEME,
        "torch": torch.__version__,
        "torch_build": hashlib.blake2b(
            torch.__config__.show().encode(), digest_size=16
        ).hexdigest(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **device.fingerprint(),
        "cpu_model": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": str(torch.backends.mkldnn.enabled).lower(),
        "threads": str(torch.get_num_threads()),
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "variables": " ".join(
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES)
        ),
    }


def own_packages(strategy: TrainingStrategy) -> tuple[str, ...]:
    """The packages of a team's own code that a strategy names, by their top level."""
    names = [strategy.model.factory, strategy.data.source]
    schedulers: list[SchedulerDeclaration] = [strategy.scheduler]
    while schedulers:
        scheduler = schedulers.pop()
        names.append(str(plain_arguments(scheduler.args).get("lr_lambda", "")))
        schedulers += scheduler.schedulers
    return tuple(sorted({name.partition(":")[0].split(".")[0] for name in names if is_own(name)}))


def differences(made_with: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """What differs, as in `threads: 1 -> 2`, by name."""
    return {
        name: f"{made_with.get(name, '') or 'unset'} -> {here.get(name, '') or 'unset'}"
        for name in sorted({*made_with, *here} - _FREE)
        if made_with.get(name) != here.get(name)
    }


def listed(found: Mapping[str, str]) -> str:
    """Differences in one line."""
    return "; ".join(f"{name}: {change}" for name, change in found.items())


def mismatch(found: Mapping[str, str], why: str = "where other bytes come out") -> EverstepError:
    """ENVIRONMENT_MISMATCH, with the list of differences."""
    return EverstepError(
        Reason.ENVIRONMENT_MISMATCH,
        f"the checkpoint was made in another environment, {why}: {listed(found)}; resume on a "
        "trainer like the one it was made on, or say allow_inexact: the training is then marked "
        "as inexact",
        metadata=dict(found),
    )
