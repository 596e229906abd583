"""Trainers, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from everstep.sdk.operations import Position


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
class RunningAttempt:
    """An attempt that is open, as the control plane last heard of it."""

    operation_id: str
    #: Of the operation.
    name: str
    number: int
    started: datetime
    position: Position
    #: The trainer that it is handed over to, which keeps room for it; empty: it stays.
    moving_to: str


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
    #: It gets no new work, and what it runs moves to others.
    draining: bool
    #: What it runs.
    operation_ids: tuple[str, ...]
    #: Operations may choose it by these.
    labels: Mapping[str, str]
    #: None when it was last heard by an earlier version.
    last_heard: datetime | None
    #: What it runs, in the order of operation_ids.
    running: tuple[RunningAttempt, ...]
