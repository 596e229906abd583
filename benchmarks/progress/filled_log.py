"""A long log, written by the control plane's own functions before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.progress import words
from control_plane.database import events
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from everstep.control.v1.operations_pb2 import CreateOperationRequest
from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy

_AT_A_TIME: Final = 5000


@dataclass(frozen=True)
class FilledLog:
    """One operation that has ended."""

    operation_id: str
    last_sequence: int


def strategy() -> TrainingStrategy:
    """A small valid one; nobody trains it."""
    return parse_strategy(
        {
            "name": "scripted",
            "seed": 7,
            "data": {"source": "builtin:digits", "target": "label"},
            "model": {"factory": "mlp"},
            "loss": "cross_entropy",
            "optimizer": {"name": "AdamW", "args": {"lr": 0.001}},
            "training": {"epochs": 3, "batch_size": 32},
        }
    )


async def fill(path: Path, count: int) -> FilledLog:
    """A database with an operation whose log has at least `count` entries."""
    database = Database(f"sqlite:///{path}")
    await database.migrate()
    operations = Operations(database, EventLog(database), lambda: None)
    created = await operations.create(CreateOperationRequest(strategy=strategy()))
    name = created.operation_id
    for begin in range(1, count + 1, _AT_A_TIME):
        numbers = range(begin, min(begin + _AT_A_TIME, count + 1))
        entries = [words.entry(name, number) for number in numbers]
        await database.write(events.append, name, entries)
    cancelled = await operations.cancel(name, discard=True)
    database.close()
    return FilledLog(name, cancelled.last_sequence)
