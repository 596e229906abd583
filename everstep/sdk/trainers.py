"""Trainers, as users see them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class TrainerEnvironment:
    """What decides whether two trainers compute the same bytes."""

    torch_version: str
    python_version: str
    device: str
    cpu_model: str
    threads: int
    everstep_version: str


@dataclass(frozen=True)
class Trainer:
    """One who can train."""

    id: str
    #: host:port
    address: str
    #: Trainings at a time.
    capacity: int
    environment: TrainerEnvironment
    lease_expires: datetime
    alive: bool
    #: It gets no new work.
    draining: bool
    #: What it runs.
    operation_ids: tuple[str, ...]
