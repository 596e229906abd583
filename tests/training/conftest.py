"""One thread, as the trainer's processes have it set: thread counts are part of the bytes."""

from __future__ import annotations

import pytest
import torch

from trainer_service.child.randomness import prepare_threads


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> None:
    prepare_threads(1)
    torch.use_deterministic_algorithms(True)
