"""One run of one way to save: a process of its own, whose result is a line of JSON.

`python -m benchmarks.checkpoint.one_run '{"contender": ..., "size": ..., "job": ..., ...}'`
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import Any, Final

from benchmarks.checkpoint.server import ACCESS_KEY, SECRET_KEY, Server

EVERSTEP: Final = "Everstep"
#: Its process is killed, and another one goes on.
RECOVERY: Final = "recovery"
#: A plain copy of the state in memory.
COPY: Final = "memory copy"


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Runs and measures; see `job.Timings` for what comes out, and beside it the saves' bytes."""
    from benchmarks.checkpoint.everstep_trainer import recover, train

    if asked["contender"] == RECOVERY:
        return asyncio.run(recover(asked, asked["threads"]))
    if asked["contender"] == COPY:
        return _copy(asked)
    server = Server(asked["endpoint"])
    if asked["contender"] == EVERSTEP:
        return asyncio.run(train(server.store(), asked, asked["threads"]))
    return _run_peer(server, asked)


def _copy(asked: dict[str, Any]) -> dict[str, Any]:
    import torch

    from benchmarks.checkpoint.job import SIZES, build, copy_seconds

    torch.set_num_threads(asked["threads"])
    return {"copy": copy_seconds(*build(SIZES[asked["size"]], asked["job"]))}


def _run_peer(server: Server, asked: dict[str, Any]) -> dict[str, Any]:
    # The trainer process of Everstep imports no torch; a peer trains in this one.
    import torch

    from benchmarks.checkpoint.job import SIZES, build, run_loop, state_bytes
    from benchmarks.checkpoint.peers import PEERS

    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    torch.set_num_threads(asked["threads"])
    size = SIZES[asked["size"]]
    model, optimizer = build(size, asked["job"])
    peer = PEERS[asked["contender"]](model, optimizer, server)
    timings = run_loop(model, optimizer, size, asked["steps_between"], peer.save)
    peer.finish()
    return {
        **asdict(timings),
        "state_bytes": state_bytes(model, optimizer),
        "bytes": peer.bytes,
        "durable_at": peer.durable_at,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
    # What a peer leaves running must not hold the benchmark up.
    os._exit(0)
