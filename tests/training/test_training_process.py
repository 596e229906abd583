"""The training process from outside: killed, told to stop, refused; and always the same bytes."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from tests.training import strategies
from tests.training.dying_process import POINTS
from tests.training.processes import StartProcess, TrainingProcess, digests
from trainer_service.child.__main__ import TRAINER_GONE
from trainer_service.child.pipe import (
    Cancel,
    Failed,
    Finished,
    Shutdown,
    SlotsWanted,
    TakeCheckpoint,
)
from trainer_service.slots import MemorySlots

STRATEGY = strategies.digits()
#: Ten batches an epoch, three to a step: three whole steps and a tail, three epochs.
STEPS = 12
SELDOM = strategies.digits(checkpoint={"every_steps": 0, "every_epochs": 0})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests that the training ends with when nothing happens to it."""
    slots = MemorySlots()
    process = TrainingProcess(slots)
    process.train(SELDOM)
    assert isinstance(process.run(), Finished)
    assert slots.newest is not None
    final = digests(tmp_path_factory.mktemp("uninterrupted"), slots, slots.newest, STRATEGY)
    slots.close()
    return final


def final_digests(slots: MemorySlots, folder: Path) -> dict[str, str]:
    assert slots.newest is not None
    assert slots.newest.state["step"] == STEPS
    return digests(folder, slots, slots.newest, STRATEGY)


def test_trains_to_the_end(
    start: StartProcess, slots: MemorySlots, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    process = start()
    process.train(STRATEGY)
    last = process.run()
    assert process.exit_code() == 0
    assert isinstance(last, Finished)
    assert last.outcome == "completed"
    assert (last.result["epochs"], last.result["steps"]) == (3, STEPS)
    assert last.result["metrics"]["test_accuracy"] > 0.3
    steps = [(snapshot.trigger, snapshot.step) for snapshot in process.snapshots]
    assert steps == [*(("PERIODIC", step) for step in range(1, STEPS)), ("FINAL", STEPS)]
    assert final_digests(slots, tmp_path) == uninterrupted


def test_what_it_says_on_its_way(start: StartProcess) -> None:
    process = start()
    process.train(STRATEGY)
    process.run()
    epochs = [event for event in process.events if event.HasField("epoch_completed")]
    assert [event.epoch_completed.epoch for event in epochs] == [0, 1, 2]
    assert set(epochs[0].epoch_completed.metrics) == {"train_loss", "val_loss", "val_accuracy"}
    # A checkpoint that waits is told without a position; the trainer gives it the one before.
    positions = [
        event.position for event in process.events if not event.HasField("checkpoint_delayed")
    ]
    fractions = [position.fraction for position in positions]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(position.total_steps == STEPS for position in positions)
    snapshot = process.snapshots[-1]
    assert snapshot.metrics == dict(epochs[-1].epoch_completed.metrics)
    assert snapshot.monitor_value == snapshot.metrics[snapshot.monitor]
    assert snapshot.fingerprint["threads"] == "1"
    assert len(snapshot.data_digest) == 64


def test_killed_again_and_again(
    start: StartProcess, slots: MemorySlots, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    """At an epoch's first step, in it, at its tail; then at random until the end."""
    for step in (1, 4, 6):
        process = start()
        process.train(STRATEGY, resume=slots.newest)
        process.until_snapshot(step)
        process.kill()
    chance = random.Random(20)
    for _ in range(2):
        process = start()
        process.train(STRATEGY, resume=slots.newest)
        for _, said in zip(range(chance.randrange(2, 9)), process.listen(), strict=False):
            assert not isinstance(said, Failed)
        process.kill()
    process = start()
    before = slots.newest
    assert before is not None
    process.train(STRATEGY, resume=before)
    assert isinstance(process.run(), Finished)
    assert process.snapshots[0].step == min(before.state["step"] + 1, STEPS)
    assert final_digests(slots, tmp_path) == uninterrupted


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(
    point: str,
    start: StartProcess,
    slots: MemorySlots,
    uninterrupted: dict[str, str],
    tmp_path: Path,
) -> None:
    process = start("tests.training.dying_process", (point, "2"))
    process.train(STRATEGY)
    assert process.run() is None
    assert process.exit_code() == -signal.SIGKILL
    survivor = start()
    survivor.train(STRATEGY, resume=slots.newest)
    assert isinstance(survivor.run(), Finished)
    assert final_digests(slots, tmp_path) == uninterrupted


def test_goes_on_from_the_same_content(
    start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    """Across the start of a process the context is the same, by digest; its next step follows."""
    process = start()
    process.train(STRATEGY)
    snapshot = process.until_snapshot(7)
    process.kill()
    assert slots.newest is not None
    step = slots.newest.state["step"]
    assert step >= snapshot.step
    wanted = digests(tmp_path, slots, slots.newest, STRATEGY)
    other = start()
    other.train(STRATEGY, resume=slots.newest)
    first = other.until_snapshot(0)
    assert other.restored.digests == wanted
    assert other.restored.step == step
    assert first.step == step + 1


@pytest.mark.parametrize("how", ["cancel", "shutdown", "SIGTERM"])
def test_told_to_stop(
    how: str, start: StartProcess, slots: MemorySlots, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    process = start()
    process.train(STRATEGY)
    process.until_snapshot(3)
    match how:
        case "cancel":
            process.say(Cancel())
        case "shutdown":
            process.say(Shutdown())
        case _:
            os.kill(process.process.pid, signal.SIGTERM)
    last = process.run()
    outcome, trigger = {
        "cancel": ("cancelled", "CANCELLATION"),
        "shutdown": ("handed_over", "SHUTDOWN"),
        "SIGTERM": ("handed_over", "SHUTDOWN"),
    }[how]
    assert last == Finished(outcome, {})
    assert process.snapshots[-1].trigger == trigger
    assert 3 <= process.snapshots[-1].step < STEPS
    other = start()
    other.train(STRATEGY, resume=slots.newest)
    assert isinstance(other.run(), Finished)
    assert final_digests(slots, tmp_path) == uninterrupted


def test_a_checkpoint_that_is_asked_for(start: StartProcess) -> None:
    process = start()
    process.train(SELDOM)
    process.say(TakeCheckpoint())
    assert isinstance(process.run(), Finished)
    assert [snapshot.trigger for snapshot in process.snapshots] == ["REQUESTED", "FINAL"]


def test_discarded_without_a_checkpoint(start: StartProcess) -> None:
    process = start()
    process.train(SELDOM)
    process.say(Cancel(discard=True))
    assert process.run() == Finished("cancelled", {})
    assert process.snapshots == []


def test_an_interrupt_is_not_for_it(start: StartProcess) -> None:
    process = start()
    process.train(STRATEGY)
    process.until_snapshot(2)
    os.kill(process.process.pid, signal.SIGINT)
    assert isinstance(process.run(), Finished)


def test_its_loading_workers_end_with_it(start: StartProcess) -> None:
    """Also when it is killed: their parent is a fork server, which would last for ever."""
    process = start()
    process.train(strategies.digits(data={"workers": 2}))
    process.until_snapshot(1)
    descendants = psutil.Process(process.process.pid).children(recursive=True)
    assert len(descendants) >= 3
    process.kill()
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_without_its_trainer_it_ends(start: StartProcess) -> None:
    """Even where it says nothing that would fail: it waits for its slots."""
    process = start()
    process.train(STRATEGY)
    assert any(isinstance(said, SlotsWanted) for said in process.listen(reserve=False))
    process.connection.close()
    assert process.process.wait(30) == TRAINER_GONE


def test_a_strategy_that_is_refused(start: StartProcess) -> None:
    process = start()
    process.train(strategies.digits(model={"factory": "mlp", "args": {"hiden": [8]}}))
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "INVALID_STRATEGY"
    assert [field for field, _ in last.violations] == ["model.args.hiden"]
    assert process.exit_code() == 0
    assert process.snapshots == []


def test_a_loss_that_is_not_finite(start: StartProcess) -> None:
    """The failure says where; the state before the bad step is kept."""
    process = start()
    process.train(
        strategies.diabetes(
            optimizer={"name": "SGD", "args": {"lr": 1e200}}, checkpoint={"every_steps": 0}
        )
    )
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "NON_FINITE_LOSS"
    assert "epoch 0" in last.message
    assert "\n" not in last.message
    (snapshot,) = process.snapshots
    assert snapshot.trigger == "FAILURE"
    assert f"step {snapshot.step + 1}" in last.message


def test_another_environment_is_refused(start: StartProcess, slots: MemorySlots) -> None:
    process = start()
    process.train(STRATEGY)
    snapshot = process.until_snapshot(2)
    process.kill()
    made_with = {**snapshot.fingerprint, "threads": "64", "torch": "1.0", "own_code": "other"}
    other = start()
    other.train(STRATEGY, resume=slots.newest, fingerprint=made_with)
    last = other.run()
    assert isinstance(last, Failed)
    assert last.reason == "ENVIRONMENT_MISMATCH"
    assert "threads: 64 -> 1" in last.message
    assert "torch: 1.0 -> " in last.message
    assert "own_code: other -> unset" in last.message


def test_other_data_is_refused(start: StartProcess, slots: MemorySlots) -> None:
    process = start()
    process.train(STRATEGY)
    snapshot = process.until_snapshot(2)
    process.kill()
    for digest, accepted in (("0" * 64, False), (snapshot.data_digest, True)):
        other = start()
        other.train(STRATEGY, resume=slots.newest, data_digest=digest)
        last = other.run()
        assert isinstance(last, Finished) == accepted
        assert accepted or (isinstance(last, Failed) and last.reason == "ENVIRONMENT_MISMATCH")


def test_a_slot_that_holds_something_else_is_refused(
    start: StartProcess, slots: MemorySlots
) -> None:
    process = start()
    process.train(STRATEGY)
    process.until_snapshot(2)
    process.kill()
    assert slots.newest is not None
    blob = slots.newest.blobs[0]
    with slots.view(slots.newest.slot) as memory:
        memory[blob.offset : blob.offset + 8] = b"\xff" * 8
    other = start()
    other.train(STRATEGY, resume=slots.newest)
    last = other.run()
    assert isinstance(last, Failed)
    assert last.reason == "CHECKPOINT_CORRUPT"
