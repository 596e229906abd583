"""The command line as a person uses it: real services, real signals, exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import typer
import yaml

from checkpoint_store import open_blob_store
from checkpoint_store.digests import kind_digest, tensor_digest
from everstep.calls.connection import Connection
from everstep.calls.requests import create_operation
from everstep.calls.watch import Watch
from everstep.cli.console import OutputFormat
from everstep.cli.train import follow
from everstep.control.v1.operations_pb2 import OperationEvent
from everstep.strategy import read_strategy, strategy_content
from tests.services.commands import EVERSTEP, Everstep, environment, runner
from tests.services.processes import PATIENCE_SECONDS, ServiceProcess, wait_for
from tests.services.strategies import digits

KEYS = ("ACCESS_KEY", "SECRET_KEY")


@pytest.fixture
def control_plane(
    make_control_plane: Callable[..., ServiceProcess], make_trainer: Callable[..., ServiceProcess]
) -> ServiceProcess:
    control_plane = make_control_plane().start()
    make_trainer(EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    return control_plane


@pytest.fixture
def everstep(control_plane: ServiceProcess, tmp_path: Path) -> Everstep:
    return runner(control_plane, tmp_path)


def write_strategy(folder: Path, name: str, epochs: int, **changes: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(strategy_content(digits(epochs=epochs, **changes))))
    return str(path)


def verify_all_and_damage_one(
    everstep: Everstep, control_plane: ServiceProcess, operation: str
) -> None:
    """One line for each; exit code 1, and the blob named, while one of them is damaged."""
    store = open_blob_store(
        *(control_plane.settings[f"EVERSTEP_STORE_{name}"] for name in ("URL", *KEYS))
    )
    verified = everstep("checkpoints", "verify", "-o", "json")
    found = [json.loads(line) for line in verified.stdout.splitlines()]
    assert len(found) == len(list(store.list("operations/")))
    assert not any(one.get("damaged") for one in found)
    assert "none damaged" in verified.stderr
    [damaged] = everstep(
        "checkpoints", "verify", "--operation", operation, "-o", "json"
    ).stdout.splitlines()[:1]
    checkpoint = json.loads(damaged)["checkpoint_id"]
    [key] = [i.key for i in store.list("operations/") if i.key.endswith(f"/{checkpoint}.json")]
    content = store.get(key)
    store.put(key, b"{}")
    verified = everstep("checkpoints", "verify", code=1)
    assert checkpoint in verified.stdout
    assert key in verified.stdout
    assert "1 damaged" in verified.stderr
    store.put(key, content)
    everstep("checkpoints", "verify", checkpoint)
    everstep("checkpoints", "verify", checkpoint, "--operation", operation, code=2)


def test_detach_watch_cancel_resume_pull_and_diff(
    control_plane: ServiceProcess, everstep: Everstep, tmp_path: Path
) -> None:
    strategy = write_strategy(tmp_path, "digits", epochs=30)
    training = subprocess.Popen(
        [*EVERSTEP, "train", strategy, "--name", "mine", "--label", "team=vision"],
        env=environment(control_plane.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert training.stderr is not None
    shown = []
    for line in training.stderr:
        shown.append(line)
        if line.startswith("epoch"):
            training.send_signal(signal.SIGINT)
            break
    shown += training.stderr.readlines()
    assert training.wait(PATIENCE_SECONDS) == 0
    said = re.search(r"everstep watch (op-\w+) --after (\d+)", "".join(shown))
    assert said, "".join(shown)
    operation, after = said[1], int(said[2])

    everstep("cancel", operation)
    rest = [
        json.loads(line)
        for line in everstep(
            "watch", operation[:9], "--after", str(after), "-o", "json"
        ).stdout.splitlines()
    ]
    sequences = [int(event["sequence"]) for event in rest if event.get("sequence")]
    assert sequences == list(range(after + 1, after + 1 + len(sequences)))
    described = json.loads(everstep("show", operation, "-o", "json").stdout)
    assert described["state"] == "OPERATION_STATE_CANCELLED"
    assert described["labels"] == {"team": "vision"}
    assert "mine" in everstep("ops", "--state", "cancelled", "--resumable").stdout

    everstep("resume", operation)
    other = everstep("train", strategy, "--detach").stdout.strip()
    everstep("watch", other)
    assert "DIFFERENT" not in everstep("diff", operation, other).stdout
    changed = write_strategy(tmp_path, "changed", epochs=5, seed=12)
    third = everstep("train", changed, "--detach").stdout.strip()
    everstep("watch", third)
    assert "DIFFERENT" in everstep("diff", operation, third, code=1).stdout

    checkpoints = [
        json.loads(line)
        for line in everstep("checkpoints", "list", operation, "-o", "json").stdout.splitlines()
    ]
    newest = checkpoints[0]["reference"]["checkpoint_id"]
    everstep("checkpoints", "verify", newest)
    verify_all_and_damage_one(everstep, control_plane, operation)
    everstep("checkpoints", "pin", newest)
    assert "CHECKPOINT_PINNED" in everstep("checkpoints", "delete", "-y", newest, code=3).stderr
    everstep("pull", operation, "-o", "weights.safetensors")
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    words = {"torch.float32": "F32", "torch.int64": "I64"}
    digest = kind_digest(
        (
            name,
            tensor_digest(
                name, words[str(value.dtype)], tuple(value.shape), value.numpy().tobytes()
            ),
        )
        for name, value in weights.items()
    )
    assert digest == checkpoints[0]["digests"]["weights"]
    everstep("pull", operation, "-o", "weights.safetensors", code=2)
    everstep("pull", operation, "--best", "-o", "best.safetensors")
    usage = json.loads(everstep("usage", "-o", "json").stdout)
    assert int(usage["checkpoints"]) >= 3
    assert "unfinished uploads" in everstep("usage").stdout
    planned = everstep("gc", "--dry-run").stdout
    assert "would remove" in planned
    assert "would abort 0 unfinished uploads" in planned
    assert "trainer-1" in everstep("trainers").stdout


def test_place_and_trainer_are_chosen_and_shown(everstep: Everstep, tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(strategy_content(digits(epochs=300))))
    running = everstep("train", str(path), "--name", "long one", "-d").stdout.strip()
    waiting = everstep("train", str(path), "-d", "--priority", "-7", "--on", "gpu=h100")
    waits = waiting.stdout.strip()
    shown = everstep("show", waits).stdout
    assert re.search(r"priority +-7", shown)
    assert re.search(r"only on +gpu=h100", shown)
    assert re.search(r"waits for +a trainer with gpu=h100: none is registered", shown)
    assert everstep("update", waits, "--priority", "8").stdout == f"{waits} has priority 8\n"
    assert "--priority" in everstep("update", waits, "--priority", "101", code=2).stderr
    everstep("train", str(path), "--on", "gpu", code=2)
    [row] = [line for line in everstep("ops").stdout.splitlines() if line.startswith(waits)]
    assert re.search(r"pending +8 ", row)
    everstep("cancel", waits)

    def trainer() -> dict[str, Any]:
        return json.loads(everstep("trainers", "-o", "json").stdout)

    wait_for(lambda: trainer().get("running"), "the training to run")
    [attempt] = trainer()["running"]
    assert (attempt["operation_id"], attempt["attempt"]) == (running, 1)
    listed = everstep("trainers").stdout
    assert re.search(r"trainer-1 +alive +1/1 ", listed)
    assert re.search(rf"trainer-1 +{running} +long one +1 ", listed)
    assert everstep("trainers", "drain", "trainer-1").stdout == "trainer-1 draining\n"
    assert everstep("trainers", "drain", "trainer-1", "--undo").stdout == "trainer-1 alive\n"
    assert "TRAINER_NOT_FOUND" in everstep("trainers", "drain", "nobody", code=3).stderr
    everstep("cancel", running, "--discard")


class LosesTheInterrupt:
    """Ctrl-C comes in a finaliser, out of which no exception can get."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class WatchThatLosesTheInterrupt(Watch):
    def __next__(self) -> OperationEvent:
        event = super().__next__()
        if event.progress.HasField("epoch_completed"):
            LosesTheInterrupt()
        return event


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_is_heard_wherever_it_comes(
    control_plane: ServiceProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("everstep.cli.train.Watch", WatchThatLosesTheInterrupt)
    strategy = read_strategy(Path(write_strategy(tmp_path, "digits", epochs=30)))
    with Connection(control_plane.address) as connection:
        operation = connection.ask(create_operation(strategy)).operation_id
        with pytest.raises(typer.Exit):
            follow(connection, operation, 0, OutputFormat.TABLE)
    assert f"detached from {operation}" in capsys.readouterr().err


def test_what_is_refused_is_said_in_one_line(everstep: Everstep, tmp_path: Path) -> None:
    def error(*arguments: str, code: int) -> str:
        lines = everstep(*arguments, code=code).stderr.splitlines()
        assert lines[0].startswith("error: "), lines
        return "\n".join(lines)

    assert "OPERATION_NOT_FOUND" in error("show", "op-nowhere", code=3)
    assert "INVALID_REQUEST" in error("show", "../../x", code=2)
    assert "there is no file" in error("train", "nowhere.yaml", code=2)
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nepoch: 3\ntraining: {epochs: many}\n")
    said = error("train", str(broken), code=2)
    assert "epoch: unknown key" in said
    assert "training.epochs: expected a whole number" in said
    assert "no state" in error("ops", "--state", "sleeping", code=2)
    good = write_strategy(tmp_path, "good", epochs=1)
    assert "is no label" in error("train", good, "--label", "x", code=2)
    misspelt = write_strategy(tmp_path, "misspelt", epochs=1, loss="cross-entropy")
    failed = everstep("train", misspelt, code=1)
    assert "did you mean cross_entropy" in failed.stderr


def test_no_control_plane(tmp_path: Path) -> None:
    result = subprocess.run(
        [*EVERSTEP, "--help"], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert result.returncode == 0
    result = subprocess.run(
        [*EVERSTEP, "ops"],
        env=environment("127.0.0.1:1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert result.returncode == 4
    assert "everstep up" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_fork_goes_its_own_way_and_diff_says_where(everstep: Everstep, tmp_path: Path) -> None:
    every = {"every_steps": 45, "every_epochs": 0, "keep_last": 100}
    settings = {"epochs": 3, "batch_size": 32, "gradient_clip": 1.0}
    strategy = write_strategy(tmp_path, "parent", 3, training=settings, checkpoint=every)
    parent = everstep("train", strategy, "--detach").stdout.strip()
    everstep("watch", parent)
    refused = everstep("resume", parent, "--epochs", "5", code=2).stderr
    assert "CosineAnnealingLR" in refused
    assert "--from-checkpoint" in refused
    assert "completed" in everstep("show", parent).stdout

    listed = [
        json.loads(line)
        for line in everstep("checkpoints", "list", parent, "-o", "json").stdout.splitlines()
    ]
    at = {
        int(checkpoint["step"]): checkpoint["reference"]["checkpoint_id"] for checkpoint in listed
    }
    arguments = ("--checkpoint", at[45], "--learning-rate", "0.001", "--detach")
    fork = everstep("fork", parent, *arguments).stdout.strip()
    everstep("watch", fork)
    shown = everstep("show", fork).stdout
    assert f"forked: from checkpoint {at[45]} of {parent}, step 45" in shown
    assert "exact" in everstep("checkpoints", "list", fork).stdout

    found = json.loads(everstep("diff", parent, fork, "-o", "json", code=1).stdout)
    assert found["first_different_step"] == 46
    assert found["compared_step"] == 90
    assert found["tensors"][0].startswith("weights/")
    assert found["causes"] == ["optimizer.args.lr: 0.002, not 0.001"]
    assert "they part at step 46" in everstep("diff", parent, fork, code=1).stderr

    longer = write_strategy(tmp_path, "longer", 4, training={**settings, "epochs": 4})
    last = everstep("train", longer, "--from-checkpoint", at[90], "--detach").stdout.strip()
    everstep("watch", last)
    everstep("pull", last, "-o", "forked.safetensors")
    with safetensors.safe_open(tmp_path / "forked.safetensors", "pt") as pulled:
        assert pulled.metadata()["everstep.lineage"] == "exact"


def test_another_environment_is_refused_and_may_be_allowed(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    tmp_path: Path,
) -> None:
    control_plane = make_control_plane().start()
    settings = {"EVERSTEP_CONTROL_PLANE": control_plane.address}
    first = make_trainer("first", **settings).start()
    everstep = runner(control_plane, tmp_path)
    strategy = write_strategy(tmp_path, "moving", epochs=8)
    operation = everstep("train", strategy, "--detach").stdout.strip()
    everstep("checkpoint", operation)
    wait_for(
        lambda: everstep("checkpoints", "list", operation, "-o", "json").stdout, "a checkpoint"
    )
    everstep("cancel", operation)
    assert first.stop() == 0
    make_trainer("second", EVERSTEP_THREADS="2", **settings).start()

    assert "threads: 1 -> 2" in everstep("resume", operation, code=1).stderr
    everstep("resume", operation, "--allow-inexact")
    shown = everstep("show", operation).stdout
    marked = re.search(r"lineage +(inexact from step \d+)", shown)
    assert marked, shown
    assert "inexact: threads: 1 -> 2" in shown
    assert marked[1] in everstep("checkpoints", "list", operation).stdout
    everstep("pull", operation, "-o", "inexact.safetensors")
    with safetensors.safe_open(tmp_path / "inexact.safetensors", "pt") as pulled:
        assert pulled.metadata()["everstep.lineage"] == marked[1]
