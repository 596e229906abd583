"""`everstep export` from outside: a control plane, a trainer that says what it is told, files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as ServedEvents,
)
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)
from tensorboard.util.tensor_util import make_ndarray

from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED
from everstep.errors import Reason
from tests.control_plane.conftest import Client
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining
from tests.services.processes import PATIENCE_SECONDS, ServiceProcess

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

EVERSTEP = str(Path(sys.executable).parent / "everstep")


def step(training: ScriptedTraining, number: int, loss: float, speed: float) -> None:
    metrics = {"loss": loss, "learning_rate": 0.1, "examples_per_second": speed}
    training.say(step=number, step_metrics={**metrics, "gradient_norm": 2 * loss})


async def train_twice(client: Client, trainer: ScriptedTrainer) -> ScriptedTraining:
    """To the middle of attempt 2: a process died in attempt 1, which was then lost."""
    operation_id = await client.create(labels={"team": "vision"})
    first = await trainer.begun(operation_id)
    step(first, 5, 0.9, speed=100)
    first.epoch(0, val_loss=0.8)
    first.commit(first.checkpoint(10))
    step(first, 15, 0.7, speed=110)
    first.say(training_restarted={"cause": "signal SIGKILL", "from_step": 12, "source": "memory"})
    step(first, 15, 0.7, speed=120)
    step(first, 18, 0.6, speed=110)
    first.fail(Reason.TRAINER_RESTARTED, "it stopped", restartable=True)
    second = await trainer.begun(operation_id, 2)
    # Another one than before: this attempt is not exact.
    step(second, 15, 0.75, speed=130)
    second.epoch(1, val_loss=float("nan"))
    second.say(warning={"reason": "STEP_SKIPPED", "message": "step 21 had no finite loss"})
    return second


class Exports:
    """`everstep export KIND OP ...` with a control plane."""

    #: Ended with their test, if they have not by themselves.
    started: ClassVar[list[asyncio.subprocess.Process]] = []

    def __init__(self, address: str, kind: str, *to: str) -> None:
        self._arguments = [EVERSTEP, "export", kind, "--address", address, "-o", "json", *to]

    async def __call__(self, *arguments: str, code: int = 0) -> list[Any]:
        process = await self.start(*arguments)
        out, messages = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == code, messages.decode()
        assert "Traceback" not in messages.decode()
        return [json.loads(line) for line in out.splitlines()] or [messages.decode()]

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = subprocess.PIPE
        environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        process = await asyncio.create_subprocess_exec(
            *self._arguments, *arguments, stdout=pipe, stderr=pipe, env=environment
        )
        self.started.append(process)
        return process


@pytest.fixture(autouse=True)
async def _none_left() -> AsyncIterator[None]:
    yield
    for process in Exports.started:
        if process.returncode is None:
            process.kill()
            await process.wait()
    Exports.started.clear()


async def until_exported(seen: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(FileNotFoundError, StopIteration, IndexError):
                if await asyncio.to_thread(seen):
                    return
            await asyncio.sleep(0.05)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard shows them, however it reads them."""
    events = EventAccumulator(str(folder)).Reload()
    as_served = ServedEvents(str(folder)).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        found[name] = [
            (event.step, pytest.approx(event.value, nan_ok=True)) for event in events.Scalars(name)
        ]
        assert found[name] == [
            (event.step, make_ndarray(event.tensor_proto).item())
            for event in as_served.Tensors(name)
        ]
    return found


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    events = EventAccumulator(str(folder / "log")).Reload()
    for name in events.Tags()["tensors"]:
        for event in events.Tensors(name):
            yield name, event.tensor_proto.string_val[0].decode()


async def test_tensorboard_follows_over_restarts_and_shows_each_step_once(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess, tmp_path: Path
) -> None:
    export = Exports(control_plane.address, "tensorboard", "--to", str(tmp_path / "runs"))
    training = await train_twice(client, trainer)
    name = training.operation_id
    following = await export.start(name, "--follow")
    await until_exported(lambda: "log/warning" in dict(texts(next((tmp_path / "runs").iterdir()))))
    await asyncio.to_thread(control_plane.kill)
    step(training, 25, 0.5, speed=140)
    await asyncio.to_thread(control_plane.start)
    training.complete()
    out, messages = await asyncio.wait_for(following.communicate(), PATIENCE_SECONDS)
    assert following.returncode == 0, messages.decode()
    done = json.loads(out)
    folder = Path(done["place"])
    assert folder == tmp_path / "runs" / f"digits-mlp-{name}"
    assert done["sequence"] == (await client.get(name)).last_sequence

    nan = float("nan")
    found = curves(folder)
    assert found["step/loss"] == [(5, 0.9), (15, 0.75), (25, 0.5)]
    assert found["step/examples_per_second"] == [(5, 100), (15, 130), (25, 140)]
    assert found["step/gradient_norm"] == [(5, 1.8), (15, 1.5), (25, 1.0)]
    assert found["epoch/val_loss"] == [(10, 0.8), (20, nan)]
    assert found["epoch/number"] == [(10, 1), (20, 2)]
    assert found["checkpoint/logical_bytes"] == [(10, 0)]
    said = list(texts(folder))
    assert ("log/warning", "STEP_SKIPPED: step 21 had no finite loss") in said
    assert any(kind == "log/restart" and "signal SIGKILL" in text for kind, text in said)
    states = [text for kind, text in said if kind == "log/state"]
    assert states[-1].startswith("completed: COMPLETED")
    started = EventAccumulator(str(folder)).Reload().SummaryMetadata(SESSION_START_INFO_TAG)
    hyperparameters = parse_session_start_info_plugin_data(started.plugin_data.content).hparams
    assert hyperparameters["optimizer.args.lr"].number_value == 0.001
    assert hyperparameters["model.factory"].string_value == "mlp"

    before = digests(folder)
    assert await export(name) == [done]
    assert digests(folder) == before


async def test_an_export_in_two_parts_is_the_same_as_in_one(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess, tmp_path: Path
) -> None:
    training = await train_twice(client, trainer)
    name = training.operation_id
    await client.watch(name, lambda event: event.progress.HasField("warning"))
    parts = Exports(control_plane.address, "tensorboard", "--to", str(tmp_path / "parts"))
    (early,) = await parts(name)
    training.complete()
    await client.until_state(name, OPERATION_STATE_COMPLETED)
    whole = Exports(control_plane.address, "tensorboard", "--to", str(tmp_path / "whole"))
    (one,) = await parts(name)
    (other,) = await whole(name)
    assert early["sequence"] < one["sequence"] == other["sequence"]
    assert digests(Path(one["place"])) == digests(Path(other["place"]))


async def test_mlflow_has_each_point_once_and_goes_on(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    export = Exports(control_plane.address, "mlflow", "--tracking-uri", uri)
    training = await train_twice(client, trainer)
    name = training.operation_id
    await client.watch(name, lambda event: event.progress.HasField("warning"))
    (first,) = await export(name)
    # Beside the loop, in which the trainer says that it is alive.
    mlflow = await asyncio.to_thread(MlflowClient, tracking_uri=uri)
    run = await asyncio.to_thread(mlflow.get_run, first["place"])
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "digits-mlp"
    assert run.data.params["optimizer.args.lr"] == "0.001"
    assert run.data.tags["everstep.label.team"] == "vision"

    following = await export.start(name, "--follow")
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as database:
        # MLflow cannot write: the export says so, and waits.
        database.execute(
            "CREATE TRIGGER away BEFORE INSERT ON metrics BEGIN INSERT INTO nowhere VALUES (1); END"
        )
        step(training, 25, 0.5, speed=140)
        assert following.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b"waiting for it" not in await following.stderr.readline():
                pass
        database.execute("DROP TRIGGER away")
    training.complete()
    out, messages = await asyncio.wait_for(following.communicate(), PATIENCE_SECONDS)
    assert following.returncode == 0, messages.decode()
    second = json.loads(out)
    (third,) = await export(name)
    assert second["place"] == first["place"]
    assert first["sequence"] < second["sequence"] == third["sequence"]

    def history(metric: str) -> list[tuple[int, float]]:
        points = mlflow.get_metric_history(first["place"], metric)
        return [(point.step, point.value) for point in points]

    # Trained again with the same loss it stands once, with another one beside the first.
    assert history("step/loss") == [(5, 0.9), (15, 0.7), (18, 0.6), (15, 0.75), (25, 0.5)]
    assert history("step/examples_per_second") == [(5, 100), (15, 110), (18, 110), (25, 140)]
    assert history("epoch/number") == [(10, 1), (20, 2)]
    run = mlflow.get_run(first["place"])
    assert run.info.status == "FINISHED"
    events = {key: text for key, text in run.data.tags.items() if key.startswith("everstep.event.")}
    assert sum("signal SIGKILL" in text for text in events.values()) == 1
    experiment = mlflow.get_experiment_by_name("everstep")
    assert experiment is not None
    assert len(mlflow.search_runs([experiment.experiment_id])) == 1


async def test_what_cannot_be_exported_is_said(
    client: Client, control_plane: ServiceProcess, tmp_path: Path
) -> None:
    name, other = await client.create(), await client.create()
    to_files = Exports(control_plane.address, "tensorboard", "--to", str(tmp_path / "runs"))
    assert "there is no operation op-nothing" in (await to_files("op-nothing", code=3))[0]
    (tmp_path / "file").touch()
    nowhere = Exports(control_plane.address, "tensorboard", "--to", str(tmp_path / "file"))
    assert "cannot be written" in (await nowhere(name, code=2))[0]
    nobody = Exports(control_plane.address, "mlflow", "--tracking-uri", "http://127.0.0.1:9")
    assert "MLflow does not answer" in (await nobody(name, code=4))[0]

    # A process that is started beside a shell ignores it, and so would those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    following = await to_files.start(name, other, "--follow")
    await until_exported(lambda: len(list((tmp_path / "runs").rglob("everstep.json"))) == 2)
    assert "another export writes to" in (await to_files(name, code=2))[0]
    following.send_signal(signal.SIGINT)
    await asyncio.wait_for(following.communicate(), PATIENCE_SECONDS)
    assert following.returncode == 130
    os.truncate(next((tmp_path / "runs").glob(f"*{name}/*tfevents*")), 10)
    assert "has lost events" in (await to_files(name, code=2))[0]
