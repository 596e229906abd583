"""From memory to the store and back: complete, verified, without what the store has."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from checkpoint_store import blob_download
from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import (
    Target,
    commit_checkpoint,
    read_manifest,
    restore_blobs,
    restored_bytes,
    stored_bytes,
    verify_checkpoint,
)
from checkpoint_store.digests import Buffer, blob_digest, blob_key, canonical_json
from checkpoint_store.local_blobs import LocalBlobStore
from checkpoint_store.long_uploads import REUSE_SECONDS
from checkpoint_store.manifest import Manifest
from everstep.errors import EverstepError, Reason
from everstep.object_store_process import MinioProcess
from tests.store.conftest import ACCESS_KEY, SECRET_KEY
from tests.store.other_clock import OtherClockStore
from tests.store.states import STATE, MemoryState, fill, make_state


def refused(call: Callable[[], object]) -> EverstepError:
    with pytest.raises(EverstepError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


def commit(store: BlobStore, state: MemoryState, /, **changes: Any) -> Manifest:
    return commit_checkpoint(store, state.draft(**changes), memoryview(state.memory)).manifest


def restore(store: BlobStore, manifest: Manifest) -> dict[str, bytes]:
    """The bytes of each blob, by kind and number."""
    memory = bytearray(restored_bytes(manifest))
    placed = restore_blobs(store, manifest, Target.of(memoryview(memory)))
    assert [kind for kind, _, _ in placed] == [blob.kind for blob in manifest.blobs]
    assert all(offset % 64 == 0 for _, offset, _ in placed)
    return {
        f"{kind}-{number}": bytes(memory[offset : offset + length])
        for number, (kind, offset, length) in enumerate(placed)
    }


def test_a_checkpoint_comes_back(store: BlobStore) -> None:
    state = make_state(best_is_last=False)
    committed = commit_checkpoint(store, state.draft(), memoryview(state.memory))
    assert committed.manifest_key == "operations/op-1/attempts/1/checkpoints/ck-12.json"
    assert committed.manifest_digest == blob_digest(store.get(committed.manifest_key))
    manifest = read_manifest(store, committed.manifest_key, committed.manifest_digest)
    assert manifest.to_bytes() == committed.manifest.to_bytes()
    assert canonical_json(manifest.state) == canonical_json(STATE)
    assert restore(store, manifest) == state.kinds()
    assert verify_checkpoint(store, manifest) == (5, committed.uploaded_bytes)
    assert committed.uploaded_bytes == manifest.logical_bytes


def test_the_same_state_again_uploads_nothing(store: BlobStore) -> None:
    state = make_state()
    first = commit_checkpoint(store, state.draft("ck-1"), memoryview(state.memory))
    again = commit_checkpoint(store, state.draft("ck-2"), memoryview(state.memory))
    best = next(blob for blob in state.layout.blobs if blob.kind == "best_weights")
    assert first.uploaded_bytes < first.manifest.logical_bytes - best.length
    assert again.uploaded_bytes == 0
    assert again.manifest.digests == first.manifest.digests
    assert restore(store, again.manifest) == state.kinds()


def test_only_what_changed_is_uploaded(store: BlobStore) -> None:
    first, second = make_state(seed=1), make_state(seed=1)
    optimizer = second.layout.blobs[-1]
    second.memory[optimizer.offset + optimizer.length - 1] ^= 1
    commit(store, first, checkpoint_id="ck-1")
    again = commit_checkpoint(store, second.draft("ck-2"), memoryview(second.memory))
    assert again.uploaded_bytes == optimizer.length
    assert restore(store, again.manifest) == second.kinds()


def test_a_blob_of_another_length_in_the_store_is_replaced(store: BlobStore) -> None:
    state = make_state()
    blob = state.layout.blobs[0]
    content = bytes(state.memory[blob.offset : blob.offset + blob.length])
    store.put(blob_key(blob_digest(content)), content[:-1])
    assert restore(store, commit(store, state)) == state.kinds()


def test_digests_are_of_content_and_not_of_where_it_stands(folder_store: BlobStore) -> None:
    state = make_state()
    groups = {
        kind: [
            tensor.spec
            for blob in state.layout.blobs
            if blob.kind == kind
            for tensor in blob.tensors
        ]
        for kind in ("optimizer", "best_weights", "weights")
    }
    seeds = {"weights": 7, "best_weights": 7, "optimizer": 7}
    spread = fill(groups, seeds, max_blob_bytes=10_000_000)
    assert len(spread.layout.blobs) < len(state.layout.blobs)
    digests = commit(folder_store, state, checkpoint_id="ck-1").digests
    assert commit(folder_store, spread, checkpoint_id="ck-2").digests == digests
    assert digests.keys() == {
        "weights", "best_weights", "optimizer", "history", "progress", "state",
    }  # fmt: skip
    assert digests["weights"] == digests["best_weights"] != digests["optimizer"]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"state": STATE | {"history": []}}, {"history", "state"}),
        ({"state": STATE | {"step": 13}}, {"progress", "state"}),
        ({"metrics": {}, "trigger": "FINAL", "create_time": "2027-01-01T00:00:00Z"}, set()),
    ],
)
def test_each_digest_speaks_of_its_part(
    folder_store: BlobStore, change: dict[str, Any], changed: set[str]
) -> None:
    state = make_state()
    before = commit(folder_store, state, checkpoint_id="ck-1").digests
    after = commit(folder_store, state, checkpoint_id="ck-2", **change).digests
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_a_flipped_bit_is_found_and_the_blob_named(store: BlobStore) -> None:
    state = make_state(best_is_last=False)
    manifest = commit(store, state)
    victim = blob_key(manifest.blobs[1].digest)
    content = bytearray(store.get(victim))
    content[-1] ^= 1
    store.put(victim, content)
    for call in (lambda: restore(store, manifest), lambda: verify_checkpoint(store, manifest)):
        error = refused(call)
        assert error.reason is Reason.CHECKPOINT_CORRUPT
        assert victim in error.message
        assert error.metadata == {"checkpoint_id": "ck-12", "blob": victim}


def test_ranges_side_by_side_come_in_any_order(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_download, "RANGE_BYTES", 100)
    state = make_state(best_is_last=False)
    manifest = commit(store, state)
    came: list[int] = []
    memory = bytearray(restored_bytes(manifest))
    placed = restore_blobs(store, manifest, Target.of(memoryview(memory)), 8, came.append)
    for (_, offset, length), content in zip(placed, state.kinds().values(), strict=True):
        assert memory[offset : offset + length] == content
    assert len(came) > 10 * len(placed)
    assert sum(came) == stored_bytes(manifest)
    victim = blob_key(manifest.blobs[0].digest)
    content = bytearray(store.get(victim))
    for place in (0, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        store.put(victim, flipped)
        assert victim in refused(lambda: restore(store, manifest)).message


def test_progress_of_a_commit_counts_every_byte(store: BlobStore) -> None:
    state = make_state()
    for name in ("ck-1", "ck-2"):
        brought: list[int] = []
        committed = commit_checkpoint(
            store, state.draft(name), memoryview(state.memory), brought=brought.append
        )
        assert sum(brought) == committed.manifest.logical_bytes


@pytest.mark.parametrize("cut", [None, 10])
def test_a_missing_or_cut_blob_is_found_and_named(store: BlobStore, cut: int | None) -> None:
    manifest = commit(store, make_state())
    victim = blob_key(manifest.blobs[-1].digest)
    content = store.get(victim)
    store.delete(victim)
    if cut is not None:
        store.put(victim, content[:-cut])
    for call in (lambda: restore(store, manifest), lambda: verify_checkpoint(store, manifest)):
        error = refused(call)
        assert error.reason is Reason.CHECKPOINT_CORRUPT
        assert victim in error.message


def test_manifests_that_are_not_what_was_written(store: BlobStore) -> None:
    state = make_state()
    committed = commit_checkpoint(store, state.draft(), memoryview(state.memory))
    key, digest = committed.manifest_key, committed.manifest_digest
    assert refused(lambda: read_manifest(store, key, "0" * 64)).reason is Reason.CHECKPOINT_CORRUPT
    content = store.get(key)
    other = key.replace("ck-12", "ck-13")
    assert refused(lambda: read_manifest(store, other)).reason is Reason.CHECKPOINT_NOT_FOUND
    store.put(other, content)
    assert refused(lambda: read_manifest(store, other)).reason is Reason.CHECKPOINT_CORRUPT
    store.put(key, content[: len(content) // 2])
    assert refused(lambda: read_manifest(store, key)).reason is Reason.CHECKPOINT_CORRUPT
    assert refused(lambda: read_manifest(store, key, digest)).reason is Reason.CHECKPOINT_CORRUPT


def make_old(store: BlobStore) -> None:
    """Every blob of a folder looks two hours old."""
    folder = Path(unquote(urlsplit(store.url).path))
    for info in store.list("blobs/"):
        moment = info.modified.timestamp() - 7200
        os.utime(folder / info.key, (moment, moment))


def test_an_old_blob_is_relied_on_only_if_the_parent_keeps_it(folder_store: BlobStore) -> None:
    """Garbage collection may be about to remove an old blob that nothing names."""
    state = make_state()
    parent = commit(folder_store, state, checkpoint_id="ck-1")
    make_old(folder_store)
    child = commit_checkpoint(
        folder_store, state.draft("ck-2", parent=parent.key), memoryview(state.memory)
    )
    assert child.uploaded_bytes == 0
    folder_store.delete(parent.key)
    alone = commit_checkpoint(
        folder_store, state.draft("ck-3", parent=parent.key), memoryview(state.memory)
    )
    assert alone.uploaded_bytes == sum({b.digest: b.length for b in parent.blobs}.values())
    make_old(folder_store)
    orphan = commit_checkpoint(folder_store, state.draft("ck-4"), memoryview(state.memory))
    assert orphan.uploaded_bytes == alone.uploaded_bytes


@pytest.mark.parametrize("skew", [timedelta(hours=-2), timedelta(hours=2)], ids=str)
def test_what_is_old_is_told_by_the_store_s_clock(tmp_path: Path, skew: timedelta) -> None:
    store = OtherClockStore(tmp_path, skew)
    store.set_up()
    state = make_state()
    whole = commit(store, state, checkpoint_id="ck-1")
    again = commit_checkpoint(store, state.draft("ck-2"), memoryview(state.memory))
    assert again.uploaded_bytes == 0
    for info in store.list("blobs/"):
        moment = (info.modified - skew).timestamp() - REUSE_SECONDS - 60
        os.utime(tmp_path / info.key, (moment, moment))
    later = commit_checkpoint(store, state.draft("ck-3"), memoryview(state.memory))
    assert later.uploaded_bytes == sum({b.digest: b.length for b in whole.blobs}.values())


class SweptStore(LocalBlobStore):
    """A folder from which a collection removes one blob while another is put."""

    def __init__(self, folder: Path, swept: str) -> None:
        super().__init__(folder)
        self._swept = swept

    def put(self, key: str, data: Buffer) -> None:
        super().put(key, data)
        if key.startswith("blobs/") and key != self._swept:
            self.delete(self._swept)


def test_a_blob_that_is_swept_during_the_commit_is_uploaded_again(tmp_path: Path) -> None:
    plain = LocalBlobStore(tmp_path)
    plain.set_up()
    first, second = make_state(seed=1), make_state(seed=1)
    optimizer = second.layout.blobs[-1]
    second.memory[optimizer.offset + optimizer.length - 1] ^= 1
    swept = blob_key(commit(plain, first, checkpoint_id="ck-1").blobs[0].digest)
    manifest = commit(SweptStore(tmp_path, swept), second, checkpoint_id="ck-2")
    assert restore(plain, manifest) == second.kinds()


def test_memory_can_be_unmapped_after_success_and_after_failure(store: BlobStore) -> None:
    state = make_state()
    draft = state.draft()

    def in_mapped(call: Callable[[memoryview], object], size: int) -> None:
        with mmap.mmap(-1, size) as mapped, memoryview(mapped) as memory:
            memory[: len(state.memory)] = state.memory
            call(memory)

    size = len(state.memory)
    in_mapped(lambda memory: commit_checkpoint(store, draft, memory), size)
    manifest = read_manifest(store, "operations/op-1/attempts/1/checkpoints/ck-12.json")
    in_mapped(lambda memory: restore_blobs(store, manifest, Target.of(memory)), size)
    for blob in manifest.blobs:
        store.put(blob_key(blob.digest), b"x")
    error = refused(
        lambda: in_mapped(lambda memory: restore_blobs(store, manifest, Target.of(memory)), size)
    )
    assert error.reason is Reason.CHECKPOINT_CORRUPT
    broken = state.draft("ck-2", blobs=(("weights", 1, 500),))
    error = refused(
        lambda: in_mapped(lambda memory: commit_checkpoint(store, broken, memory), size)
    )
    assert error.reason is Reason.CHECKPOINT_CORRUPT


def test_drafts_that_do_not_fit_memory_are_refused(folder_store: BlobStore) -> None:
    state = make_state()
    for blob in (("weights", 0, len(state.memory) + 1), ("weights", -1, 5), ("history", 0, 10)):
        with pytest.raises(ValueError, match="no blob"):
            commit(folder_store, state, blobs=(blob,))
    manifest = commit(folder_store, state)
    with pytest.raises(ValueError, match="too few"):
        restore_blobs(folder_store, manifest, Target.of(memoryview(bytearray(100))))


def test_a_checkpoint_without_tensors(store: BlobStore) -> None:
    manifest = commit(store, make_state(), blobs=())
    assert restored_bytes(manifest) == 0
    assert restore_blobs(store, manifest, Target.of(memoryview(b""))) == ()
    assert manifest.digests.keys() == {"history", "progress", "state"}


MEMORY_SCRIPT = """
import json, mmap, resource, sys
from checkpoint_store import open_blob_store
from checkpoint_store.checkpoints import *
from checkpoint_store.safetensors_layout import TensorSpec, plan_group
from tests.store.other_clock import OtherClockStore
from tests.store.states import MemoryState

store = open_blob_store(*sys.argv[1:])
store.check()
store.put("warm", b"x")
rows = 16 * 1024 * 1024 // 4
names = [TensorSpec(f"t{number}", "F32", (rows,)) for number in range(12)]
layout = plan_group("weights", names, max_blob_bytes=1)

def growth(call, memory):
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()
    result = call(memory)
    return result, peak() - before

with mmap.mmap(-1, layout.total_bytes) as mapped, memoryview(mapped) as memory:
    for number, blob in enumerate(layout.blobs):
        memory[blob.offset : blob.offset + len(blob.header)] = blob.header
        begin, end = blob.offset + len(blob.header), blob.offset + blob.length
        memory[begin:end] = bytes([number]) * (end - begin)
    draft = MemoryState(layout, bytearray()).draft()
    committed, up = growth(lambda m: commit_checkpoint(store, draft, m), memory)
    _, down = growth(lambda m: restore_blobs(store, committed.manifest, Target.of(m)), memory)
    print(json.dumps([layout.total_bytes, committed.uploaded_bytes, up, down]))
"""


def test_no_copy_of_the_whole_is_made(minio: MinioProcess) -> None:
    name = hashlib.sha256(str(os.getpid()).encode()).hexdigest()[:12]
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, minio.url(f"memory-{name}"), ACCESS_KEY, SECRET_KEY],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    total, uploaded, up, down = json.loads(result.stdout)
    assert uploaded == total > 190_000_000
    assert up < total / 10
    assert down < total / 10
