"""One thread, as the trainer's processes have it set: thread counts are part of the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.training.processes import StartProcess, TrainingProcess
from trainer_service.child.randomness import prepare_threads
from trainer_service.slots import MemorySlots


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> None:
    prepare_threads(1)
    torch.use_deterministic_algorithms(True)


@pytest.fixture
def slots() -> Iterator[MemorySlots]:
    made = MemorySlots()
    yield made
    made.close()


@pytest.fixture
def start(slots: MemorySlots) -> Iterator[StartProcess]:
    """Starts training processes; all are killed at the end."""
    made: list[TrainingProcess] = []

    def start_process(*args: Any, **kwargs: Any) -> TrainingProcess:
        process = TrainingProcess(slots, *args, **kwargs)
        made.append(process)
        return process

    yield start_process
    for process in made:
        process.process.kill()
        process.exit_code()
