"""Everstep's side in the training process: the job's loop, with the product's own snapshots."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.checkpoint.job import (
    SIZES,
    build,
    run_loop,
    state_bytes,
    train_step,
)
from trainer_service.child.context_digests import context_digests
from trainer_service.child.early_stopping import EarlyStopping
from trainer_service.child.history import BestEpoch
from trainer_service.child.pipe import (
    ChildPipe,
    Finished,
    Ready,
    SlotsReady,
    SnapshotReleased,
    Train,
)
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.snapshots import Snapshots
from trainer_service.child.state_size import snapshot_bytes
from trainer_service.child.training_state import TrainingState


def main(descriptor: int) -> None:
    """Runs the job that `Train` describes, and says how it went in `Finished`."""
    pipe = ChildPipe(socket.socket(fileno=descriptor))
    pipe.send(Ready(os.getpid()))
    train, slots = pipe.receive()
    assert isinstance(train, Train)
    moments = {"told": time.time()}
    torch.set_num_threads(train.threads)
    size = SIZES[train.strategy["size"]]
    model, optimizer = build(size, train.strategy["job"])
    moments["built"] = time.time()
    state = training_state(model, optimizer)
    snapshots = Snapshots(pipe, train, slots, _described, lambda _step, _by_step: None)
    threading.Thread(target=_listen, args=(pipe, snapshots), daemon=True).start()

    def save(step: int) -> None:
        state.step = step
        snapshots.take("PERIODIC", lambda: state.capture({}))

    if train.resume is not None:
        restore(state, snapshots.read(train.resume), train.resume.state)
        moments["restored"] = time.time()
        train_step(model, optimizer, size, state.step + 1)
        moments["first_step"] = time.time()
        result: dict[str, Any] = {"moments": moments, "step": state.step}
    else:
        snapshots.prepare(*snapshot_bytes(state, 0))
        timings = run_loop(model, optimizer, size, train.strategy["steps_between"], save)
        result = {**asdict(timings), "state_bytes": state_bytes(model, optimizer)}
    pipe.send(Finished("completed", result))
    sys.stderr.flush()
    os._exit(0)


def training_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """The product's own, of weights and optimizer alone: what the peers save."""
    return TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=None,
        scaler=None,
        average=None,
        best=BestEpoch("train_loss"),
        early_stopping=EarlyStopping("train_loss", None, 0.0),
    )


def restore(
    state: TrainingState,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    small_state: dict[str, Any],
) -> None:
    """As the product's training process does it, with its digests of what it restores."""
    context = TrainingResumeContext.from_state(small_state, tensors, {})
    context_digests(context)
    state.restore(context)


def _described(context: TrainingResumeContext) -> dict[str, Any]:
    return {
        "epoch": 0,
        "step": context.step,
        "metrics": {},
        "monitor": "",
        "monitor_value": None,
        "fingerprint": {},
        "data_digest": "0" * 64,
        "lineage": [],
    }


def _listen(pipe: ChildPipe, snapshots: Snapshots) -> None:
    while True:
        match pipe.receive()[0]:
            case None:
                os._exit(1)
            case SlotsReady():
                snapshots.ready()
            case SnapshotReleased(slot):
                snapshots.released(slot)


if __name__ == "__main__":
    main(int(sys.argv[1]))
