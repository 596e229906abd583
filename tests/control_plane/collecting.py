"""Collects garbage as a control plane does, two hours later, and dies by SIGKILL at a named point.

Run as a process by the tests: DATABASE_URL STORE_URL CHECKPOINT POINT. The checkpoint is deleted
first; without a point all is done, and what the collection did is printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from checkpoint_store.store_clock import store_time
from control_plane import garbage
from control_plane.checkpoints import Checkpoints
from control_plane.database import checkpoints
from control_plane.database.session import Database
from control_plane.garbage import GarbageCollector
from control_plane.garbage_sweep import GarbageSweep
from everstep.errors import EverstepError, Reason
from tests.store.committing import die
from tests.store.conftest import ACCESS_KEY, SECRET_KEY

#: What is called, with which keys, and the how manieth such call it dies before, from 0.
POINTS: Final = {
    "the rows are gone": ("finish_removals", "", 0),
    "no manifest is removed": ("delete", "operations/", 0),
    "a manifest is removed": ("removal_done", "", 0),
    "unregistered manifests are planned for removal": ("delete", "operations/", 1),
    "unregistered manifests are removed": ("removal_done", "", 1),
    "nothing was looked at": ("_named", "", 0),
    "between the looks at manifests": ("_named", "", 1),
    "the sweep is announced": ("delete", "blobs/", 0),
    "between two blobs": ("delete", "blobs/", 1),
    "the blobs are gone": ("delete", "sweeps/", 0),
    "no upload is aborted": ("abort_upload", "", 0),
    "between two uploads": ("abort_upload", "", 1),
}


def two_hours_later(store: BlobStore) -> datetime:
    """What was stored a moment ago is older than the grace."""
    return store_time(store) + timedelta(hours=2)


def kill_at(owner: Any, name: str, prefix: str, number: int) -> None:
    """Arms a method or function: its process dies before that call of it."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1_000_000))

    def call(*arguments: Any) -> Any:
        if (not prefix or arguments[0].startswith(prefix)) and next(calls) == number:
            die()
        return original(*arguments)

    setattr(owner, name, call)


async def collect(database_url: str, store: BlobStore, checkpoint_id: str, point: str) -> None:
    database = Database(database_url)
    registry = Checkpoints(database, store, store)
    collector = GarbageCollector(database, store, registry)
    if point:
        name, prefix, number = POINTS[point]
        owners: dict[str, Any] = {
            "finish_removals": registry, "removal_done": checkpoints, "_named": GarbageSweep,
        }  # fmt: skip
        kill_at(owners.get(name, store), name, prefix, number)
    try:
        await registry.delete(checkpoint_id)
    except EverstepError as error:
        # Deleted by the process that was killed.
        if error.reason is not Reason.CHECKPOINT_NOT_FOUND:
            raise
    print(json.dumps(asdict(await collector.collect(None, False))))
    database.close()


def main(database_url: str, store_url: str, checkpoint_id: str, point: str) -> None:
    garbage.store_time = two_hours_later
    store = open_blob_store(store_url, ACCESS_KEY, SECRET_KEY)
    asyncio.run(collect(database_url, store, checkpoint_id, point))


if __name__ == "__main__":
    main(*sys.argv[1:])
