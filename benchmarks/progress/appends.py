"""Appends to the log alone: the control plane's own functions, without gRPC.

`python -m benchmarks.progress.appends '{"folder": ..., "events": ..., "batch": ...}'`
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.progress import words
from benchmarks.progress.filled_log import strategy
from benchmarks.progress.processes import say
from control_plane.assignment import Assigned, assign_round
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from control_plane.trainers import Trainers
from everstep.control.v1.operations_pb2 import CreateOperationRequest
from everstep.control.v1.trainers_pb2 import RegisterTrainerRequest, TrainerEnvironment
from everstep.rpc.logs import configure_logging

_LEASE_SECONDS: Final = 3600.0


async def run(asked: dict[str, Any]) -> None:
    """Appends so many events, so many in a transaction, and says how long it took."""
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as folder:
        database = Database(f"sqlite:///{Path(folder) / 'log.db'}")
        await database.migrate()
        log = EventLog(database)
        operation_id = await _begin_attempt(database, log)
        said = [words.word(operation_id, 1, index) for index in range(1, asked["events"] + 1)]
        began = time.monotonic()
        for first in range(0, len(said), asked["batch"]):
            await log.append(operation_id, 1, said[first : first + asked["batch"]])
        say(seconds=time.monotonic() - began)
        database.close()


async def _begin_attempt(database: Database, log: EventLog) -> str:
    """An operation whose first attempt a trainer has."""
    request = RegisterTrainerRequest(
        trainer_id="nobody",
        address="127.0.0.1:1",
        capacity=1,
        environment=TrainerEnvironment(),
    )
    await Trainers(database, _LEASE_SECONDS, lambda: None).register(request)
    operations = Operations(database, log, lambda: None)
    created = await operations.create(CreateOperationRequest(strategy=strategy()))
    decided = await database.write(assign_round, "benchmark", _LEASE_SECONDS, frozenset())
    assert decided.begun == [Assigned(created.operation_id, 1)]
    return created.operation_id


if __name__ == "__main__":
    configure_logging("console")
    asyncio.run(run(json.loads(sys.argv[1])))
