"""A commit and a collection, one call of the store at a time, in every order that matters."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import pytest

from checkpoint_store import sweeps
from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import commit_checkpoint, read_manifest, verify_checkpoint
from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.local_blobs import LocalBlobStore
from checkpoint_store.safetensors_layout import GroupLayout
from control_plane.caller import Caller
from control_plane.garbage_sweep import GarbageSweep
from tests.store.states import MemoryState, make_state

HOUR: Final = 3600
CALLS: Final = ("list", "stat", "get", "put", "delete")
PATIENCE_SECONDS: Final = 30.0


class Turns:
    """Lets two parties call the store in the order of a schedule, such as `CGGC`."""

    def __init__(self, schedule: str) -> None:
        self._schedule = schedule
        self._position = 0
        self._ended: set[str] = set()
        self._changed = threading.Condition()
        self.made: list[str] = []

    def take(self, party: str, call: Callable[[], Any], name: str) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_turn(party), PATIENCE_SECONDS)
            self.made.append(f"{party} {name}")
            try:
                return call()
            finally:
                self._position += 1
                self._changed.notify_all()

    def end(self, party: str) -> None:
        with self._changed:
            self._ended.add(party)
            self._changed.notify_all()

    def _is_turn(self, party: str) -> bool:
        """The schedule's turns of one who has ended are left out; after its end anyone goes."""
        while self._position < len(self._schedule):
            if self._schedule[self._position] not in self._ended:
                return self._schedule[self._position] == party
            self._position += 1
        return True


class TurnsStore:
    """A folder that one of the parties sees; each call waits for its turn."""

    def __init__(self, store: BlobStore, turns: Turns, party: str) -> None:
        self._store = store
        self._turns = turns
        self._party = party

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in CALLS:
            return method

        def call(*arguments: Any) -> Any:
            def now() -> Any:
                result = method(*arguments)
                return list(result) if isinstance(result, Iterator) else result

            return self._turns.take(self._party, now, f"{name} {arguments[0]}")

        return call


def interleaved(store: BlobStore, state: MemoryState, schedule: str) -> list[str]:
    """A commit (C) and a sweep (G), their calls in the order of the schedule; what was called."""
    turns = Turns(schedule)
    failures: list[BaseException] = []

    def run(party: str, work: Callable[[BlobStore], object]) -> threading.Thread:
        def body() -> None:
            try:
                work(cast(BlobStore, TurnsStore(store, turns, party)))
            except BaseException as error:
                failures.append(error)
            finally:
                turns.end(party)

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def commit(seen: BlobStore) -> None:
        commit_checkpoint(seen, state.draft(), memoryview(state.memory), parallelism=1)

    def collect(seen: BlobStore) -> None:
        oldest = datetime.now(UTC) - timedelta(hours=1)
        GarbageSweep(seen, oldest, frozenset(), False, Caller()).run()

    for thread in [run("C", commit), run("G", collect)]:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert failures == [], turns.made
    return turns.made


def one_blob(state: MemoryState) -> MemoryState:
    """Only the first of the state's blobs: the orders are many enough."""
    first = state.layout.blobs[0]
    return MemoryState(GroupLayout((first,), first.length), state.memory[: first.length])


def schedules(commits: int, collections: int, switches: int) -> Iterator[str]:
    """Every order of so many calls in which they change between the parties that often at most."""
    length = commits + collections
    for chosen in itertools.combinations(range(length), commits):
        schedule = "".join("C" if position in chosen else "G" for position in range(length))
        if sum(first != second for first, second in itertools.pairwise(schedule)) <= switches:
            yield schedule


def test_no_order_of_calls_loses_a_blob_that_a_commit_brought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of orders: what only takes time is left out."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(sweeps, "_PAUSE_SECONDS", 0.0)
    state = one_blob(make_state())
    content = bytes(state.memory)
    key = blob_key(blob_digest(content))
    swept = brought = 0
    for number, schedule in enumerate(schedules(commits=6, collections=9, switches=5)):
        folder = tmp_path / str(number)
        store = LocalBlobStore(folder)
        store.set_up()
        store.put(key, content)
        then = time.time() - 2 * HOUR
        os.utime(folder / key, (then, then))
        made = interleaved(store, state, schedule)
        [manifest] = [info.key for info in store.list("operations/")]
        assert store.stat(key) is not None, made
        verify_checkpoint(store, read_manifest(store, manifest))
        assert list(store.list("sweeps/")) == []
        swept += f"G delete {key}" in made
        brought += made.count(f"C put {key}") == 2
        shutil.rmtree(folder)
    assert swept > 50
    assert brought > 10
