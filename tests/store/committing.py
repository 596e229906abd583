"""Commits a checkpoint and dies by SIGKILL at a named point; run as a process by the tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import commit_checkpoint
from tests.store.conftest import ACCESS_KEY, SECRET_KEY
from tests.store.states import make_state


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(store: BlobStore, number: int, moment: str) -> None:
    """Arms the store: it kills its process around the put of this number, from 0."""
    puts = iter(range(1_000_000))
    original: Callable[..., None] = store.put

    def put(key: str, data: Any) -> None:
        hit = next(puts) == number
        if hit and moment == "before":
            die()
        if hit and moment == "moving":
            os.replace = os.rename = lambda *_: die()
        original(key, data)
        if hit and moment == "after":
            die()

    store.put = put  # type: ignore[method-assign]


def main(url: str, number: str, moment: str) -> None:
    store = open_blob_store(url, ACCESS_KEY, SECRET_KEY)
    store.check()
    kill_at(store, int(number), moment)
    state = make_state()
    commit_checkpoint(store, state.draft(), memoryview(state.memory), parallelism=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
