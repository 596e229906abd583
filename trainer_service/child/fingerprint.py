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
from trainer_service.child.randomness import RANDOM_SCHEME

#: Recorded, but free to differ.
_FREE = frozenset({"everstep"})
_VARIABLES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_")


def fingerprint() -> dict[str, str]:
    """This process's environment, once its threads and its determinism are set."""
    return {
        "everstep": __version__,
        "random_scheme": RANDOM_SCHEME,
        "torch": torch.__version__,
        "torch_build": hashlib.blake2b(
            torch.__config__.show().encode(), digest_size=16
        ).hexdigest(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "device": "cpu",
        "cpu_model": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "variables": " ".join(
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES)
        ),
    }


def check_fingerprint(made_with: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuses to go on where other bytes would come out.

    Raises:
        EverstepError: ENVIRONMENT_MISMATCH, with the list of differences.
    """
    differences = {
        name: f"{made_with.get(name, '') or 'unset'} -> {here.get(name, '') or 'unset'}"
        for name in sorted({*made_with, *here} - _FREE)
        if made_with.get(name) != here.get(name)
    }
    if differences:
        listed = "; ".join(f"{name}: {change}" for name, change in differences.items())
        raise EverstepError(
            Reason.ENVIRONMENT_MISMATCH,
            f"the checkpoint was made in another environment, where other bytes come out: {listed};"
            " resume on a trainer like the one it was made on",
            metadata=differences,
        )


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as information:
            for line in information:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.machine()
    return platform.machine()
