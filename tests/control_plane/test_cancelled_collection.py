"""A collection whose caller goes: it ends soon, and no other begins before its thread has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.local_blobs import LocalBlobStore
from control_plane.checkpoints import Checkpoints
from control_plane.database.session import Database
from control_plane.garbage import GarbageCollector
from tests.control_plane.stored_checkpoints import HOUR, age

BLOBS = 5
PATIENCE_SECONDS = 30.0


class GatedStore(LocalBlobStore):
    """A folder in which the removal of a blob takes until the gate is opened."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.at_gate = threading.Event()
        self.gate = threading.Event()

    def delete(self, key: str) -> None:
        if key.startswith("blobs/"):
            self.at_gate.set()
            assert self.gate.wait(PATIENCE_SECONDS)
        super().delete(key)

    def blobs(self) -> int:
        return len(list(self.list("blobs/")))


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    store = GatedStore(tmp_path / "store")
    store.set_up()
    for number in range(BLOBS):
        content = str(number).encode()
        store.put(blob_key(blob_digest(content)), content)
    age(tmp_path / "store", 2 * HOUR)
    return store


@pytest.fixture
async def collector(tmp_path: Path, store: GatedStore) -> AsyncIterator[GarbageCollector]:
    database = Database(f"sqlite:///{tmp_path / 'control-plane.db'}")
    await database.migrate()
    yield GarbageCollector(database, store, Checkpoints(database, store, store))
    database.close()


async def begun(collector: GarbageCollector, store: GatedStore) -> asyncio.Task[object]:
    """A collection that is about to remove its first blob."""
    call = asyncio.create_task(collector.collect(None, False))
    assert await asyncio.to_thread(store.at_gate.wait, PATIENCE_SECONDS)
    return call


async def test_a_cancelled_collection_ends_before_the_next_begins(
    collector: GarbageCollector, store: GatedStore
) -> None:
    first = await begun(collector, store)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    looks = asyncio.create_task(collector.collect(None, True))
    gone = asyncio.create_task(collector.collect(None, False))
    # Whatever may begin now has begun after a few turns of the loop, and its thread after this.
    done, _ = await asyncio.wait([looks], timeout=0.3)
    assert not done
    gone.cancel()
    store.gate.set()
    seen = await asyncio.wait_for(looks, PATIENCE_SECONDS)
    # The one that was under way, and no other.
    assert seen.removed_blobs == store.blobs() == BLOBS - 1
    with pytest.raises(asyncio.CancelledError):
        await gone
    whole = await asyncio.wait_for(collector.collect(None, False), PATIENCE_SECONDS)
    assert whole.removed_blobs == BLOBS - 1
    assert [info.key for info in store.list("sweeps/")] == []


async def test_a_collection_whose_caller_stays_does_all_of_it(
    collector: GarbageCollector, store: GatedStore
) -> None:
    first = await begun(collector, store)
    store.gate.set()
    await asyncio.wait_for(first, PATIENCE_SECONDS)
    assert store.blobs() == 0
