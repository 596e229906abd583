"""A commit that is killed at any point leaves no half checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import commit_checkpoint, read_manifest, verify_checkpoint
from tests.store.states import make_state

#: Two blobs of weights (best weights are the same ones) and one of the optimizer.
BLOBS = 3
KEY = "operations/op-1/attempts/1/checkpoints/ck-12.json"


def start(store: BlobStore, number: int, moment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.committing", store.url, str(number), moment],
        cwd=Path(__file__).parents[2],
    )


def manifests(store: BlobStore) -> list[str]:
    return [info.key for info in store.list("operations/")]


def check_and_commit_again(store: BlobStore) -> int:
    """What is listed is whole; the same commit then succeeds. Returns what it uploaded."""
    for key in manifests(store):
        verify_checkpoint(store, read_manifest(store, key))
    state = make_state()
    committed = commit_checkpoint(store, state.draft(), memoryview(state.memory))
    assert manifests(store) == [KEY]
    assert (
        verify_checkpoint(store, read_manifest(store, KEY, committed.manifest_digest))[0] == BLOBS
    )
    return committed.uploaded_bytes


@pytest.mark.parametrize(
    ("number", "moment"),
    [(0, "before"), (0, "after"), (BLOBS - 1, "after"), (BLOBS, "before"), (BLOBS, "after")],
)
def test_killed_between_puts(store: BlobStore, number: int, moment: str) -> None:
    assert start(store, number, moment).wait(60) == -signal.SIGKILL
    done = number + (moment == "after")
    assert len(list(store.list("blobs/"))) == min(done, BLOBS)
    assert manifests(store) == ([KEY] if done > BLOBS else [])
    uploaded = check_and_commit_again(store)
    assert (uploaded == 0) == (done >= BLOBS)


@pytest.mark.parametrize("number", range(BLOBS + 1))
def test_killed_while_a_file_is_moved_to_its_place(folder_store: BlobStore, number: int) -> None:
    assert start(folder_store, number, "moving").wait(60) == -signal.SIGKILL
    assert len(list(folder_store.list(""))) == number
    check_and_commit_again(folder_store)


@pytest.mark.parametrize("milliseconds", [0, 3, 10, 30])
def test_killed_at_any_time(store: BlobStore, milliseconds: int) -> None:
    """From outside, so many milliseconds after the first blob was seen."""
    process = start(store, 1_000, "never")
    deadline = time.monotonic() + 60
    while next(iter(store.list("blobs/")), None) is None and time.monotonic() < deadline:
        assert process.poll() in (None, 0)
    try:
        process.wait(milliseconds / 1000)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    check_and_commit_again(store)
