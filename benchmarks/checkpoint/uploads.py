"""How fast the same bytes get into the object store while nothing else happens.

`python -m benchmarks.checkpoint.uploads '{"contender": ..., "size": ..., "endpoint": ...}'`
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from benchmarks.checkpoint.everstep_child import training_state
from benchmarks.checkpoint.job import SIZES, build, state_bytes
from benchmarks.checkpoint.peers import PART_BYTES, UPLOADS_AT_A_TIME
from benchmarks.checkpoint.restores import commit_state
from benchmarks.checkpoint.server import BUCKET, Server
from trainer_service.slots import MemorySlots

RAW: Final = "raw put_object"


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds, and the bytes that travelled."""
    server = Server(asked["endpoint"])
    model, optimizer = build(SIZES[asked["size"]], "all")
    if asked["contender"] == RAW:
        return _raw(server, state_bytes(model, optimizer))
    slots, store = MemorySlots(), server.store()
    began = time.perf_counter()
    _, copied = commit_state(store, training_state(model, optimizer), slots)
    return {"seconds": time.perf_counter() - copied, "copy_seconds": copied - began}


def _raw(server: Server, length: int) -> dict[str, Any]:
    client = server.client()
    sizes = [min(PART_BYTES, length - offset) for offset in range(0, length, PART_BYTES)]
    parts = [os.urandom(size) for size in sizes]

    def put(number: int) -> None:
        content = io.BytesIO(parts[number])
        client.put_object(BUCKET, f"part-{number}", content, sizes[number], part_size=PART_BYTES)

    began = time.perf_counter()
    with ThreadPoolExecutor(UPLOADS_AT_A_TIME) as uploads:
        list(uploads.map(put, range(len(parts))))
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)
