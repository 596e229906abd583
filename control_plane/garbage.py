"""Blobs that no checkpoint needs, and uploads that nobody ended: collected.

Every manifest in the store protects its blobs, whether or not this control plane knows it: a
trainer may have written one whose event is still on its way, or for another caller. A blob that
nothing names is removed once it is older than the grace, which is longer than an upload relies on
a blob that it found in the store. An upload is aborted when no part of it came for as long.
"""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from checkpoint_store.blobs import BlobStore
from checkpoint_store.store_clock import store_time
from control_plane import store_contents, times
from control_plane.caller import Caller
from control_plane.checkpoints import Checkpoints
from control_plane.database import attempts, checkpoints, deletions
from control_plane.database.session import Database
from control_plane.garbage_sweep import Collection, GarbageSweep

#: The youngest a removed blob is; never less while something trains.
DEFAULT_GRACE: Final = timedelta(hours=1)
_MANIFEST_KEY: Final = re.compile(r"operations/([^/]+)/attempts/([0-9]+)/checkpoints/[^/]+\.json")


class GarbageCollector:
    """Marks what manifests name, and sweeps the rest; one at a time.

    Args:
        database: Says what trains, and which manifests are to be removed.
        store: Its calls must not be tried again for longer than `sweeps.RETRY_SECONDS`.
        registry: Removes manifests.
    """

    def __init__(self, database: Database, store: BlobStore, registry: Checkpoints) -> None:
        self._database = database
        self._store = store
        self._registry = registry
        self._collecting = asyncio.Lock()

    async def collect(self, grace: timedelta | None, dry_run: bool) -> Collection:
        """Removes blobs that nothing names, and what is left of uploads, older than the grace.

        While something trains the grace is an hour at least: an upload may rely on younger ones.

        Raises:
            EverstepError: STORE_UNAVAILABLE and the like; CHECKPOINT_CORRUPT when a manifest
                cannot be read: what it names is not known, so nothing is removed.
        """
        caller = Caller()
        collecting = asyncio.create_task(self._collect(grace, dry_run, caller))
        try:
            return await asyncio.shield(collecting)
        except asyncio.CancelledError:
            # The task keeps the lock until its thread has ended; what it raises is for nobody.
            caller.gone = True
            collecting.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise

    async def _collect(self, grace: timedelta | None, dry_run: bool, caller: Caller) -> Collection:
        async with self._collecting:
            caller.check()
            if not dry_run:
                await self._registry.finish_removals()
            training = await self._database.read(attempts.load_by_trainer)
            if grace is None or (training and grace < DEFAULT_GRACE):
                grace = DEFAULT_GRACE
            removed = set(await self._database.read(checkpoints.planned_removals))
            # The store's clock alone is held against the store's ages: ours may be any time.
            now = await asyncio.to_thread(store_time, self._store)
            removed |= await self._abandoned(now - max(grace, DEFAULT_GRACE), dry_run)
            oldest = now - grace
            sweep = GarbageSweep(self._store, oldest, frozenset(removed), dry_run, caller)
            return await asyncio.to_thread(sweep.run)

    async def _abandoned(self, oldest: datetime, dry_run: bool) -> set[str]:
        """Older manifests that were never registered, of attempts that are over and forgotten.

        Or of operations that were deleted: an upload may outlive its attempt, however that ended.
        """
        listed = await asyncio.to_thread(lambda: list(self._store.list(store_contents.MANIFESTS)))
        old = [info.key for info in listed if info.modified < oldest]
        keys = await self._database.read(_unregistered, old)
        if keys and not dry_run:
            await self._database.write(checkpoints.plan_removals, keys, times.now())
            await self._registry.finish_removals()
        return set(keys)


def _unregistered(connection: Connection, keys: list[str]) -> list[str]:
    registered = checkpoints.manifest_keys(connection)
    found = []
    for key in keys:
        parts = _MANIFEST_KEY.fullmatch(key)
        if key in registered or parts is None:
            continue
        deleted = deletions.contains(connection, parts[1])
        if deleted or attempts.settled(connection, parts[1], int(parts[2])):
            found.append(key)
    return found
