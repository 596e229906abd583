"""Announced sweeps: waited for while their collector lives, and no longer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoint_store import sweeps
from checkpoint_store.blobs import BlobInfo, BlobStore
from checkpoint_store.store_clock import CLOCK, age_at, store_time
from checkpoint_store.sweeps import (
    RENEWED_SECONDS,
    STALE_SECONDS,
    SWEEPS,
    AnnouncedSweep,
    await_sweeps,
    remove_stale_sweeps,
)
from everstep.errors import EverstepError, Reason
from tests.services.processes import wait_for
from tests.store.other_clock import OtherClockStore

BLOB = "blobs/ab/abc"
#: Between this machine's clock and the store's.
SKEWS = [timedelta(hours=-2), timedelta(0), timedelta(hours=2)]


class Waiting:
    """An upload that waits for sweeps, in a thread."""

    def __init__(self, store: BlobStore) -> None:
        self.error: EverstepError | None = None
        self._thread = threading.Thread(target=self._wait, args=(store,))
        self._thread.start()

    def _wait(self, store: BlobStore) -> None:
        try:
            await_sweeps(store)
        except EverstepError as error:
            self.error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(30)
        assert self.over


def is_garbage(_info: BlobInfo) -> bool:
    return True


def announcements(store: BlobStore) -> list[str]:
    return [info.key for info in store.list(SWEEPS)]


def make_older(folder: Path, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / key, (then, then))


def refused(call: Callable[[], object]) -> Reason:
    with pytest.raises(EverstepError) as caught:
        call()
    return caught.value.reason


def open_folder(folder: Path, skew: timedelta = timedelta(0)) -> OtherClockStore:
    store = OtherClockStore(folder, skew)
    store.set_up()
    return store


@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_a_sweep_is_waited_for_until_it_is_over(tmp_path: Path, skew: timedelta) -> None:
    store = open_folder(tmp_path, skew)
    with AnnouncedSweep(store):
        waiting = Waiting(store)
        wait_for(lambda: store.looks > 3 or waiting.over, "looks at the announcement")
        assert not waiting.over
    waiting.join()
    assert waiting.error is None


@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_a_collector_that_died_is_not_waited_for_again(tmp_path: Path, skew: timedelta) -> None:
    store = open_folder(tmp_path, skew)
    AnnouncedSweep(store).__enter__()
    [died] = announcements(store)
    make_older(tmp_path, died, STALE_SECONDS + 1)
    with AnnouncedSweep(store):
        [alive] = set(announcements(store)) - {died}
        remove_stale_sweeps(store)
        assert announcements(store) == [alive]
    AnnouncedSweep(store).__enter__()
    [died] = announcements(store)
    make_older(tmp_path, died, STALE_SECONDS + 1)
    await_sweeps(store)
    assert store.looks == 0


def test_a_collector_that_was_killed_a_moment_ago_is_waited_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its announcement on, and not from the wait's beginning."""
    store = open_folder(tmp_path)
    AnnouncedSweep(store).__enter__()
    monkeypatch.setattr(sweeps, "STALE_SECONDS", 1000.0)
    make_older(tmp_path, announcements(store)[0], 999.5)
    began = time.monotonic()
    waiting = Waiting(store)
    waiting.join()
    assert 0.2 < time.monotonic() - began < 20
    assert store.looks > 0


def test_a_wait_ends_when_the_store_is_given_up(tmp_path: Path) -> None:
    store = open_folder(tmp_path)
    with AnnouncedSweep(store):
        waiting = Waiting(store)
        wait_for(lambda: store.looks > 1, "a look at the announcement")
        store.give_up()
        waiting.join()
    assert waiting.error is not None
    assert waiting.error.reason is Reason.STORE_UNAVAILABLE


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The collector's clock, which stands still unless it is moved."""
    now = [0.0]
    monkeypatch.setattr(sweeps, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


def test_nobody_waits_for_a_whole_collection(tmp_path: Path, seconds: list[float]) -> None:
    """Its announcement is replaced between two blobs, never while one is removed."""
    store = open_folder(tmp_path)
    for number in range(3):
        store.put(f"{BLOB}{number}", b"x")
    with AnnouncedSweep(store) as sweep:
        first = announcements(store)
        assert sweep.remove_if(f"{BLOB}0", is_garbage)
        assert announcements(store) == first
        waiting = Waiting(store)
        wait_for(lambda: store.looks > 0, "a look at the announcement")
        seconds[0] += RENEWED_SECONDS + 1
        assert sweep.remove_if(f"{BLOB}1", is_garbage)
        second = announcements(store)
        assert len(second) == 1
        assert second != first
        waiting.join()
        assert not sweep.remove_if(f"{BLOB}1", is_garbage)
        assert not sweep.remove_if(f"{BLOB}2", lambda _info: False)
    assert announcements(store) == []
    assert [info.key for info in store.list("blobs/")] == [f"{BLOB}2"]


def test_after_a_look_that_took_long_it_looks_again(tmp_path: Path, seconds: list[float]) -> None:
    """Whoever waited for the announcement may have gone on, and brought the blob anew."""
    store = open_folder(tmp_path)
    store.put(BLOB, b"x")
    announced: list[list[str]] = []

    def is_garbage_at_first(_info: BlobInfo) -> bool:
        announced.append(announcements(store))
        seconds[0] += STALE_SECONDS + 1 if len(announced) == 1 else 0
        return len(announced) == 1

    with AnnouncedSweep(store) as sweep:
        assert not sweep.remove_if(BLOB, is_garbage_at_first)
    assert store.stat(BLOB) is not None
    assert len(announced) == 2
    assert announced[0] != announced[1]


def test_a_removal_that_failed_may_be_under_way(tmp_path: Path) -> None:
    """Its announcement stays until it is stale; that of a sweep that was ended does not."""
    store = open_folder(tmp_path)
    store.put(BLOB, b"x")

    def sweep_and_fail(fail: Callable[[], None]) -> None:
        with AnnouncedSweep(store) as sweep:
            sweep.remove_if(BLOB, is_garbage)
            fail()

    def fail() -> None:
        raise EverstepError(Reason.CALL_CANCELLED, "the caller has gone")

    assert refused(lambda: sweep_and_fail(fail)) is Reason.CALL_CANCELLED
    assert announcements(store) == []

    store.put(BLOB, b"x")
    delete = store.delete

    def time_out(key: str) -> None:
        if key == BLOB:
            raise EverstepError(Reason.STORE_UNAVAILABLE, "no answer")
        delete(key)

    store.delete = time_out  # type: ignore[method-assign]
    assert refused(lambda: sweep_and_fail(fail)) is Reason.STORE_UNAVAILABLE
    assert len(announcements(store)) == 1


def test_every_store_has_a_time(store: BlobStore) -> None:
    store.put(BLOB, b"x")
    info = store.stat(BLOB)
    assert info is not None
    assert -1 <= age_at(store_time(store), info) < 30
    with AnnouncedSweep(store) as sweep:
        assert sweep.remove_if(BLOB, is_garbage)
        remove_stale_sweeps(store)
        assert len(announcements(store)) == 1
    await_sweeps(store)
    assert [info.key for info in store.list("")] == [CLOCK]
