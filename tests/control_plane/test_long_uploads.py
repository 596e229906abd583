"""An upload that takes longer than the grace of garbage collection loses nothing to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoint_store import long_uploads
from checkpoint_store.checkpoints import commit_checkpoint, verify_checkpoint
from checkpoint_store.digests import Buffer
from checkpoint_store.local_blobs import LocalBlobStore
from checkpoint_store.long_uploads import COUNTED_SECONDS, UPLOADS
from control_plane.caller import Caller
from control_plane.garbage import DEFAULT_GRACE
from control_plane.garbage_sweep import Collection, GarbageSweep
from everstep.errors import EverstepError, Reason
from tests.services.processes import wait_for
from tests.store.states import make_state

STATE = make_state(best_is_last=False)
BLOBS = 5


class SlowStore(LocalBlobStore):
    """A folder with a clock of its own, into which each blob takes its time.

    After each blob, garbage is collected.
    """

    def __init__(self, folder: Path, seconds_each: float) -> None:
        super().__init__(folder)
        self.set_up()
        self._root = folder
        self._seconds_each = seconds_each
        self.now = 1_800_000_000.0
        self.collections: list[Collection] = []

    def put(self, key: str, data: Buffer) -> None:
        is_blob = key.startswith("blobs/")
        if is_blob:
            self.now += self._seconds_each
        super().put(key, data)
        os.utime(self._root / key, (self.now, self.now))
        if is_blob:
            self.collections.append(self.collect())

    def collect(self) -> Collection:
        oldest = datetime.fromtimestamp(self.now, UTC) - DEFAULT_GRACE
        return GarbageSweep(self, oldest, frozenset(), False, Caller()).run()

    def keys(self, prefix: str) -> list[str]:
        return [info.key for info in self.list(prefix)]


@pytest.fixture
def make_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], SlowStore]:
    """Makes a slow store by whose clock uploads are timed."""

    def make(seconds_each: float) -> SlowStore:
        store = SlowStore(tmp_path, seconds_each)
        monkeypatch.setattr(long_uploads, "time", SimpleNamespace(monotonic=lambda: store.now))
        return store

    return make


def commit(store: LocalBlobStore) -> None:
    committed = commit_checkpoint(store, STATE.draft(), memoryview(STATE.memory), parallelism=1)
    assert verify_checkpoint(store, committed.manifest)[0] == BLOBS


def test_what_a_long_upload_brought_is_spared_until_it_ends(
    make_slow: Callable[[float], SlowStore],
) -> None:
    """Twenty minutes each: its first blobs are older than the grace when it names them."""
    store = make_slow(1200)
    commit(store)
    assert [collection.kept_blobs for collection in store.collections] == [1, 2, 3, 4, 5]
    assert store.keys(UPLOADS) == []
    store.now += 7200
    store.delete(store.keys("operations/")[0])
    assert store.collect().removed_blobs == BLOBS


def test_an_upload_that_was_spared_by_nobody_fails(
    make_slow: Callable[[float], SlowStore],
) -> None:
    """It could announce itself too late: the collections before that did not know of it."""
    store = make_slow(2750)
    with pytest.raises(EverstepError) as refused:
        commit(store)
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert store.keys("operations/") == []
    assert store.keys(UPLOADS) == []


def test_an_upload_that_died_is_spared_for_a_day(make_slow: Callable[[float], SlowStore]) -> None:
    store = make_slow(0)
    store.put(f"{UPLOADS}died", b"")
    store.put("blobs/ab/abc", b"x")
    store.now += COUNTED_SECONDS - 1
    assert store.collect().removed_blobs == 0
    store.now += 2
    assert store.collect().removed_blobs == 1
    assert store.keys(UPLOADS) == []


class WaitingStore(LocalBlobStore):
    """A folder into which a blob takes until an upload is announced."""

    def put(self, key: str, data: Buffer) -> None:
        if key.startswith("blobs/"):
            wait_for(lambda: list(self.list(UPLOADS)), "an announcement", 10)
        super().put(key, data)


def test_one_blob_may_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_uploads, "LONG_SECONDS", 0.01)
    store = WaitingStore(tmp_path)
    store.set_up()
    commit(store)
    assert list(store.list(UPLOADS)) == []
