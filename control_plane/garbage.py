"""Blobs that no checkpoint needs, and uploads that nobody ended: collected.

Every manifest in the store protects its blobs, whether or not this control plane knows it: a
trainer may have written one whose event is still on its way, or for another caller. A blob that
nothing names is removed once it is older than the grace, which is longer than an upload relies on
a blob that it found in the store. An upload is aborted when no part of it came for as long.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from checkpoint_store.blobs import BlobInfo, BlobStore, UnfinishedUpload
from checkpoint_store.digests import blob_key
from checkpoint_store.sweeps import AnnouncedSweep, remove_stale_sweeps
from control_plane import store_contents, times
from control_plane.checkpoints import Checkpoints
from control_plane.database import attempts, checkpoints
from control_plane.database.session import Database
from everstep.errors import EverstepError, Reason

#: The youngest a removed blob is; never less while something trains.
DEFAULT_GRACE: Final = timedelta(hours=1)
_MANIFEST_KEY: Final = re.compile(r"operations/([^/]+)/attempts/([0-9]+)/checkpoints/[^/]+\.json")


@dataclass(frozen=True)
class Collection:
    """What a collection removed, or would remove."""

    removed_blobs: int
    removed_bytes: int
    kept_blobs: int
    aborted_uploads: int
    aborted_bytes: int


class GarbageCollector:
    """Marks what manifests name, and sweeps the rest; one at a time."""

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
        async with self._collecting:
            if not dry_run:
                await self._registry.finish_removals()
            training = await self._database.read(attempts.open_by_trainer)
            if grace is None or (training and grace < DEFAULT_GRACE):
                grace = DEFAULT_GRACE
            removed = set(await self._database.read(checkpoints.planned_removals))
            removed |= await self._abandoned(grace, dry_run)
            oldest = datetime.now(UTC) - grace
            return await asyncio.to_thread(self._sweep, oldest, frozenset(removed), dry_run)

    async def _abandoned(self, grace: timedelta, dry_run: bool) -> set[str]:
        """Manifests of attempts that are over and forgotten, and which were never registered."""
        oldest = datetime.now(UTC) - max(grace, DEFAULT_GRACE)
        listed = await asyncio.to_thread(lambda: list(self._store.list(store_contents.MANIFESTS)))
        old = [info.key for info in listed if info.modified < oldest]
        keys = await self._database.read(_unregistered, old)
        if keys and not dry_run:
            await self._database.write(checkpoints.plan_removals, keys, times.now())
            await self._registry.finish_removals()
        return set(keys)

    def _sweep(self, oldest: datetime, removed: frozenset[str], dry_run: bool) -> Collection:
        if not dry_run:
            remove_stale_sweeps(self._store)
        stored = list(self._store.list(store_contents.BLOBS))
        named = self._named(removed)
        garbage = [info for info in stored if info.key not in named and info.modified < oldest]
        if garbage and not dry_run:
            garbage = self._remove(garbage, oldest, removed)
        aborted = self._abort(oldest, dry_run)
        return Collection(
            removed_blobs=len(garbage),
            removed_bytes=sum(info.size for info in garbage),
            kept_blobs=len(stored) - len(garbage),
            aborted_uploads=len(aborted),
            aborted_bytes=sum(upload.size for upload in aborted),
        )

    def _remove(
        self, garbage: list[BlobInfo], oldest: datetime, removed: frozenset[str]
    ) -> list[BlobInfo]:
        """What of it is removed: an upload may have been given its manifest meanwhile."""
        named = self._named(removed)
        with AnnouncedSweep(self._store) as sweep:
            gone = []
            for info in garbage:
                sweep.renew()
                if info.key not in named and self._remove_if_old(info, oldest):
                    gone.append(info)
            return gone

    def _remove_if_old(self, info: BlobInfo, oldest: datetime) -> bool:
        now = self._store.stat(info.key)
        if now is None or now.modified >= oldest:
            return False
        self._store.delete(info.key)
        return True

    def _abort(self, oldest: datetime, dry_run: bool) -> list[UnfinishedUpload]:
        """The uploads that no part came of since; they are gone, but for a dry run."""
        uploads = store_contents.unfinished_uploads(self._store)
        old = [upload for upload in uploads if upload.modified < oldest]
        for upload in old if not dry_run else ():
            self._store.abort_upload(upload)
        return old

    def _named(self, removed: frozenset[str]) -> set[str]:
        """The blobs that the manifests in the store name, but for those that are to be removed."""
        named: set[str] = set()
        for key, manifest in store_contents.manifests(self._store, removed):
            if manifest is None:
                raise EverstepError(
                    Reason.CHECKPOINT_CORRUPT,
                    f"{key} cannot be read, so what it needs is not known; delete that "
                    "checkpoint, then collect again",
                    metadata={"manifest_key": key},
                )
            named.update(blob_key(blob.digest) for blob in manifest.blobs)
        return named


def _unregistered(connection: Connection, keys: list[str]) -> list[str]:
    registered = checkpoints.manifest_keys(connection)
    found = []
    for key in keys:
        parts = _MANIFEST_KEY.fullmatch(key)
        if key in registered or parts is None:
            continue
        if attempts.settled(connection, parts[1], int(parts[2])):
            found.append(key)
    return found
