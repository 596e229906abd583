"""Exports the same entries over and over, killed a little later each time: a process of its own.

`python -m tests.exporters.killed_exports tensorboard|mlflow FOLDER` prints, for each moment at
which an export was killed, what the next one made of it, as a line of JSON; first what an export
leaves that was not killed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from everstep.exporters.entries import Entry, Scalar, Text
from everstep.exporters.mlflow_run import MlflowRun
from everstep.exporters.targets import Target
from everstep.exporters.tensorboard_run import TensorBoardRun
from everstep.sdk.operations import Operation, OperationState, Position
from everstep.sdk.strategy import Strategy

BEGAN = datetime(2026, 11, 24, 12, tzinfo=UTC)
BATCHES = 3
IN_BATCH = 3


def operation() -> Operation:
    return Operation(
        id="op-1",
        name="digits/mlp",
        state=OperationState.RUNNING,
        strategy=Strategy(Path(__file__).parents[2] / "strategies" / "digits-mlp.yaml"),
        strategy_digest="00",
        labels={"team": "vision"},
        created=BEGAN,
        updated=BEGAN,
        ended=None,
        position=Position(0, 3, 0, 10, 0, 30, 0.0, None),
        metrics={},
        result=None,
        failure=None,
        attempts=(),
        first_sequence=1,
        last_sequence=BATCHES * IN_BATCH,
        latest_checkpoint=None,
        resumable=True,
        parent_id="",
        from_checkpoint_id="",
        waiting_for="",
        at_risk=None,
        priority=0,
        liveness=None,
        trainer_labels={},
    )


def batch(number: int) -> list[Entry]:
    """Steps; one is trained again; a text; at last the end."""
    entries = []
    for place in range(IN_BATCH):
        sequence = number * IN_BATCH + place + 1
        time = BEGAN + timedelta(seconds=sequence)
        step = sequence - (sequence > 5)
        loss = Scalar("step/loss", 1 / step, step)
        speed = Scalar("step/examples_per_second", float(sequence), step, measured=True)
        entries.append(
            Entry(
                sequence,
                time,
                (loss, speed),
                Text("restart", f"after {step}") if sequence == 6 else None,
                goes_on_with=5 if sequence == 6 else None,
                state=OperationState.COMPLETED if sequence == BATCHES * IN_BATCH else None,
            )
        )
    return entries


def tensorboard(place: Path) -> Target:
    return TensorBoardRun(place, operation())


def mlflow(place: Path) -> Target:
    return MlflowRun(f"sqlite:///{place}/mlflow.db", "everstep", operation())


def folder_content(place: Path) -> dict[str, Any]:
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def run_content(place: Path) -> dict[str, Any]:
    """All that MLflow has, of all runs."""
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    experiments = client.search_experiments(filter_string="name = 'everstep'")
    runs = client.search_runs([experiment.experiment_id for experiment in experiments])
    return {
        str(number): {
            "status": run.info.status,
            "end": run.info.end_time,
            "tags": dict(run.data.tags),
            "params": dict(run.data.params),
            "metrics": {
                name: [
                    (metric.step, metric.timestamp, metric.value)
                    for metric in client.get_metric_history(run.info.run_id, name)
                ]
                for name in run.data.metrics
            },
        }
        for number, run in enumerate(runs)
    }


class Moments:
    """Kills the process before the call with a number, of those that leave something."""

    def __init__(self, number: int) -> None:
        self._left = number

    def wrap(self, owner: Any, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
            return call(*arguments, **options)

        setattr(owner, name, wrapped)


def export(open_target: Callable[[Path], Target], place: Path) -> None:
    target = open_target(place)
    for number in range(BATCHES):
        entries = [entry for entry in batch(number) if entry.sequence > target.sequence]
        if entries:
            target.write(entries)
    target.close()


def in_child(open_target: Callable[[Path], Target], place: Path, moment: int | None) -> bool:
    """Exports in a child process; False when it was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), status
        return status == 0
    code = 1
    try:
        if moment is not None:
            moments = Moments(moment)
            for owner, name in (
                (os, "fsync"),
                (Path, "replace"),
                (MlflowClient, "create_run"),
                (MlflowClient, "log_batch"),
                (MlflowClient, "set_tag"),
                (MlflowClient, "set_terminated"),
            ):
                moments.wrap(owner, name)
        export(open_target, place)
        code = 0
    finally:
        os._exit(code)


def main(kind: str, folder: Path) -> None:
    open_target, content = {
        "tensorboard": (tensorboard, folder_content),
        "mlflow": (mlflow, run_content),
    }[kind]
    empty = folder / "empty"
    empty.mkdir()
    if kind == "mlflow":
        # Its tables take a while to make.
        MlflowClient(tracking_uri=f"sqlite:///{empty}/mlflow.db").search_experiments()
    for moment in itertools.chain((None,), itertools.count()):
        place = folder / str(moment)
        shutil.copytree(empty, place)
        whole = in_child(open_target, place, moment)
        if moment is not None and whole:
            return
        if not whole:
            # A record of which only a part came to the disk.
            for path in place.rglob("*tfevents*"):
                with path.open("ab") as file:
                    file.write(b"\x18\x00\x00")
            assert in_child(open_target, place, None)
        print(json.dumps({"moment": moment, "content": content(place)}), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
