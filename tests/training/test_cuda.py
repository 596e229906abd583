"""The promise on CUDA. All of it is skipped without a device; not yet seen to pass on one.

`python -m pytest tests/training/test_cuda.py -rs` on a machine with a GPU and torch's CUDA build.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training import checks, strategies
from tests.training.dying_process import POINTS
from tests.training.processes import StartProcess, digests
from tests.training.runs import Laboratory, digest
from tests.training.scenarios import KINDS_OF_STATE, OPTIMIZERS, SCHEDULES, VARIANTS, Scenario
from tests.training.trials import OWN
from trainer_service.child.devices import Device, choose_device
from trainer_service.child.pipe import Accepted, Failed, Finished
from trainer_service.child.snapshot_memory import SnapshotMemory
from trainer_service.child.state_size import _optimizer_state
from trainer_service.slots import MemorySlots

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason=f"no CUDA device that torch {torch.__version__} can use",
    ),
]

CAPTURABLE = Scenario(
    "capturable Adam", lambda parameters: torch.optim.Adam(parameters, lr=0.02, capturable=True)
)
SCENARIOS = (*KINDS_OF_STATE, *VARIANTS, *SCHEDULES[:3], *OPTIMIZERS, CAPTURABLE)


@pytest.fixture(scope="module")
def device() -> Device:
    chosen = choose_device("cuda")
    chosen.start()
    return chosen


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_resumed_after_any_step(scenario: Scenario, device: Device) -> None:
    checks.ends_in_the_same_bytes(Laboratory(device=device), scenario)


#: A CNN with pooling and dropout; cuDNN's GRU with a dropout of its own, averaged; float16; a
#: team's generator on the device.
TRAININGS: dict[str, Any] = {
    "digits": strategies.digits(),
    "bf16": strategies.digits(training={"precision": "bf16-mixed", "accumulate": 1, "epochs": 2}),
    "stocks": strategies.stocks(
        model={"factory": "gru", "args": {"hidden": 6, "layers": 2, "dropout": 0.3}},
        training={"ema_decay": 0.9, "epochs": 2},
    ),
    "fp16": strategies.digits(training={"precision": "fp16-mixed", "epochs": 2}),
    "float64": strategies.diabetes(training={"epochs": 6}),
    "own": strategies.digits(
        data={"source": f"{OWN}:augmented", "target": ""},
        model={"factory": f"{OWN}:OnItsDevice", "args": {}},
        training={"batch_size": 8, "accumulate": 1, "epochs": 2},
    ),
}
OPTIONS: dict[str, Any] = {"device": "cuda", "allowed_packages": ("tests",)}


def final(start: StartProcess, slots: MemorySlots, folder: Path, training: str) -> dict[str, str]:
    """Trains to the end, from the newest snapshot if there is one."""
    process = start()
    process.train(TRAININGS[training], resume=slots.newest, **OPTIONS)
    last = process.run()
    assert isinstance(last, Finished), last
    assert slots.newest is not None
    return digests(folder, slots, slots.newest, TRAININGS[training])


@pytest.mark.parametrize("training", TRAININGS)
def test_killed_and_gone_on_with(
    training: str, start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    for step in (1, 4):
        process = start()
        process.train(TRAININGS[training], resume=slots.newest, **OPTIONS)
        process.until_snapshot(step)
        process.kill()
    resumed = final(start, slots, tmp_path / "resumed", training)
    for slot in (0, 1):
        slots.begun(slot)
    assert final(start, slots, tmp_path / "whole", training) == resumed


@pytest.mark.parametrize("point", ["in the copy", "between the copy and the flip"])
def test_killed_around_the_copy(
    point: str, start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    assert point in POINTS
    process = start("tests.training.dying_process", (point, "2"))
    process.train(TRAININGS["digits"], **OPTIONS)
    assert process.run() is None
    assert process.exit_code() == -signal.SIGKILL
    assert slots.newest is not None
    resumed = final(start, slots, tmp_path / "resumed", "digits")
    for slot in (0, 1):
        slots.begun(slot)
    assert final(start, slots, tmp_path / "whole", "digits") == resumed


def test_a_snapshot_is_the_state_at_its_step(device: Device, slots: MemorySlots) -> None:
    """Steps are in flight before it is begun, and the next one is begun as soon as it returns."""
    torch.manual_seed(1)
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(12))).to(device.place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    inputs = torch.randn(4096, 2048, device=device.place)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    def state() -> dict[str, torch.Tensor]:
        moments = {
            f"{number}/{name}": value
            for number, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {**model.state_dict(), **moments}

    step()
    memory = SnapshotMemory(slots.descriptors, device)
    memory.write(0, [("state", state())])
    targets = dict(memory._written[0][0].targets)
    for _ in range(10):
        step()
        wanted = {name: tensor.detach().clone() for name, tensor in state().items()}
        step_number = float(wanted["0/step"])
        memory.write(0, [("state", state())])
        step()
        assert {*targets} == {*wanted}
        assert float(targets["0/step"]) == step_number
        for name, target in targets.items():
            assert digest(target) == digest(wanted[name]), name
    memory.close()


def test_the_slots_are_pinned(device: Device, slots: MemorySlots) -> None:
    memory = SnapshotMemory(slots.descriptors, device)
    weights = {"a": torch.ones(1 << 20, device=device.place)}
    memory.write(0, [("weights", weights)])
    ((_, view),) = memory._written[0][0].targets
    assert view.is_pinned()
    memory.write(0, [("weights", {**weights, "b": torch.ones(1 << 22, device=device.place)})])
    assert not view.is_pinned()
    (_, larger), *_ = memory._written[0][0].targets
    assert larger.is_pinned()
    memory.close()
    assert not larger.is_pinned()


@pytest.mark.filterwarnings("default")
def test_memory_that_cannot_be_pinned_is_used_as_it_is(device: Device, slots: MemorySlots) -> None:
    """Said once; and the next kernel is not blamed for it."""
    memory = SnapshotMemory(slots.descriptors, device)
    memory.map(1 << 20)
    with pytest.warns(RuntimeWarning, match="cannot be pinned"):
        device.pin(memory._mappings[0])
    torch.ones(8, device=device.place).mul_(2)
    torch.cuda.synchronize(device.place)
    memory.close()


def test_what_an_optimizer_will_hold_is_known(device: Device) -> None:
    model = nn.Linear(4, 3).to(device.place)
    optimizer = CAPTURABLE.optimizer(model.parameters())
    planned = _optimizer_state(optimizer)["state"]
    model(torch.ones(2, 4, device=device.place)).sum().backward()
    optimizer.step()
    held = optimizer.state_dict()["state"]
    assert {n: {k: v.shape for k, v in values.items()} for n, values in planned.items()} == {
        n: {k: v.shape for k, v in values.items()} for n, values in held.items()
    }


def test_another_kind_of_device_is_refused(start: StartProcess, slots: MemorySlots) -> None:
    """In both directions; where inexact is allowed, it goes on there and is marked."""
    for made_on, other in (("cuda", "cpu"), ("cpu", "cuda")):
        for slot in (0, 1):
            slots.begun(slot)
        first = start()
        first.train(TRAININGS["digits"], device=made_on)
        snapshot = first.until_snapshot(2)
        first.kill()
        assert snapshot.fingerprint["device"] == made_on
        assert ("gpu" in snapshot.fingerprint) == (made_on == "cuda")
        refused = start()
        options: dict[str, Any] = {"device": other, "fingerprint": snapshot.fingerprint}
        refused.train(TRAININGS["digits"], resume=slots.newest, **options)
        last = refused.run()
        assert isinstance(last, Failed)
        assert last.reason == "ENVIRONMENT_MISMATCH"
        assert f"device: {made_on} -> {other}" in last.message
        allowed = start()
        options["overrides"] = {"allow_inexact": True}
        allowed.train(TRAININGS["digits"], resume=slots.newest, **options)
        assert isinstance(allowed.run(), Finished)
        (accepted,) = [said for said in allowed.said if isinstance(said, Accepted)]
        assert [event["kind"] for event in accepted.lineage] == ["INEXACT"]


def test_without_memory_the_gpu_is_named(start: StartProcess) -> None:
    process = start()
    process.train(
        strategies.digits(
            data={"source": f"{OWN}:augmented", "target": ""},
            model={"factory": f"{OWN}:too_large", "args": {}},
            training={"batch_size": 8},
        ),
        **OPTIONS,
    )
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "OUT_OF_MEMORY"
    assert f"on {torch.cuda.get_device_name()} (cuda:0)" in last.message
