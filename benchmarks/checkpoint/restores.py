"""Ways back: from the object store into a model and an optimizer that are built already.

`python -m benchmarks.checkpoint.restores '{"contender": ..., "size": ..., "endpoint": ...}'` stores
a state, reads it back, and prints a line of JSON; each run is a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from benchmarks.checkpoint.everstep_child import restore as restore_context
from benchmarks.checkpoint.everstep_child import training_state
from benchmarks.checkpoint.job import SIZES, build, state_bytes, state_tensors
from benchmarks.checkpoint.peers import PART_BYTES
from benchmarks.checkpoint.server import BUCKET, Server
from checkpoint_store.blobs import PIECE_BYTES, BlobStore
from checkpoint_store.checkpoints import CheckpointDraft, commit_checkpoint
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from trainer_service.child.snapshot_memory import SnapshotMemory
from trainer_service.child.training_state import TrainingState
from trainer_service.restorer import restore
from trainer_service.slots import MemorySlots

READS_AT_A_TIME: Final = 4
RANGE_BYTES: Final = 16 * 1024 * 1024
_SAMPLE_SECONDS: Final = 0.05
#: Reads the state into the model and the optimizer.
Back = Callable[[], None]


def raw(model: Any, optimizer: Any, server: Server) -> Back:
    """Parallel ranges of one object into memory that is there: the floor."""
    client, length = server.client(), state_bytes(model, optimizer)
    client.put_object(BUCKET, "raw", io.BytesIO(os.urandom(length)), length, part_size=PART_BYTES)
    target = bytearray(length)
    target[:] = bytes(length)

    def read(offset: int) -> None:
        size = min(RANGE_BYTES, length - offset)
        response = client.get_object(BUCKET, "raw", offset, size)
        position, end = offset, offset + size
        while position < end:
            position += response.readinto(memoryview(target)[position : position + PIECE_BYTES])
        response.release_conn()

    def back() -> None:
        with ThreadPoolExecutor(READS_AT_A_TIME) as reads:
            list(reads.map(read, range(0, length, RANGE_BYTES)))

    return back


def torch_load(model: Any, optimizer: Any, server: Server) -> Back:
    """torch.load(BytesIO(get_object)), then load_state_dict."""
    client, content = server.client(), io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
    length = content.tell()
    content.seek(0)
    client.put_object(BUCKET, "torch", content, length, part_size=PART_BYTES)
    content.close()

    def back() -> None:
        response = client.get_object(BUCKET, "torch")
        state = torch.load(io.BytesIO(response.read()))
        response.release_conn()
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    return back


def safetensors(model: Any, optimizer: Any, server: Server) -> Back:
    """safetensors.torch.load(get_object), copied into the tensors that are there."""
    client, targets = server.client(), state_tensors(model, optimizer)
    content = save_safetensors({str(number): tensor for number, tensor in enumerate(targets)})
    client.put_object(
        BUCKET, "safetensors", io.BytesIO(content), len(content), part_size=PART_BYTES
    )
    del content

    def back() -> None:
        response = client.get_object(BUCKET, "safetensors")
        tensors = load_safetensors(response.read())
        response.release_conn()
        for number, target in enumerate(targets):
            target.copy_(tensors[str(number)])

    return back


def distributed(model: Any, optimizer: Any, server: Server) -> Back:
    """dcp.load of files that are fetched side by side."""
    client = server.client()
    folder = Path("/dev/shm") / f"everstep-restore-{os.getpid()}"
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save(state, storage_writer=FileSystemWriter(folder, thread_count=2), no_dist=True)
    names = [path.name for path in folder.iterdir()]
    for name in names:
        client.fput_object(BUCKET, name, str(folder / name), part_size=PART_BYTES)
    shutil.rmtree(folder)

    def back() -> None:
        with ThreadPoolExecutor(READS_AT_A_TIME) as reads:
            fetch = [
                reads.submit(client.fget_object, BUCKET, name, str(folder / name)) for name in names
            ]
            for one in fetch:
                one.result()
        load(state, storage_reader=FileSystemReader(folder), no_dist=True)
        optimizer.load_state_dict(state["optimizer"])
        shutil.rmtree(folder)

    return back


def everstep(model: Any, optimizer: Any, server: Server) -> Back:
    """Into a slot, verified as it arrives; copied from there, its digests compared once more."""
    store, state, slots = server.store(), training_state(model, optimizer), MemorySlots()
    reference, _ = commit_state(store, state, slots)
    slots.close()

    def back() -> None:
        fresh = MemorySlots()
        restored = restore(store, reference, fresh)
        memory = SnapshotMemory(fresh.descriptors)
        restore_context(state, memory.read(restored.content), restored.content.state)

    return back


def commit_state(
    store: BlobStore, state: TrainingState, slots: MemorySlots
) -> tuple[CheckpointReference, float]:
    """A checkpoint of a state, as the product makes it; and the moment between copy and upload."""
    context = state.capture({})
    memory = SnapshotMemory(slots.descriptors)
    blobs = memory.write(0, context.tensor_groups())
    copied = time.perf_counter()
    draft = CheckpointDraft(
        checkpoint_id="ck-bench", operation_id="op-bench", attempt=1, epoch=0, step=0,
        trigger="PERIODIC", create_time="2026-01-01T00:00:00.000+00:00", parent=None,
        blobs=tuple((blob.kind, blob.offset, blob.length) for blob in blobs),
        state=context.small_state(), metrics={}, monitor="", monitor_value=None, strategy={},
        strategy_digest="0" * 64, data_digest="0" * 64, fingerprint={},
    )  # fmt: skip
    with slots.view(0) as content:
        committed = commit_checkpoint(store, draft, content)
    reference = CheckpointReference(
        checkpoint_id="ck-bench",
        manifest_key=committed.manifest_key,
        manifest_digest=committed.manifest_digest,
    )
    return reference, copied


WAYS: Final = {
    "raw parallel GET": raw,
    "torch.load(BytesIO(get_object))": torch_load,
    "safetensors": safetensors,
    "dcp.load": distributed,
    "Everstep": everstep,
}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds, the most memory taken on top of what was there, and the bytes of the state."""
    torch.set_num_threads(asked["threads"])
    model, optimizer = build(SIZES[asked["size"]], "all")
    optimizer.zero_grad()
    back = WAYS[asked["contender"]](model, optimizer, Server(asked["endpoint"]))
    peak = _Peak()
    began = time.perf_counter()
    back()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": peak.stop(),
        "state_bytes": state_bytes(model, optimizer),
    }


class _Peak:
    """Watches this process's memory, and what stands in /dev/shm."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._peak = self._now()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return max(self._peak, self._now()) - self._before

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, self._now())

    def _now(self) -> int:
        # A slot that is mapped twice is one piece of memory.
        own: int = self._process.memory_full_info().pss
        return own + shutil.disk_usage("/dev/shm").used


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)
