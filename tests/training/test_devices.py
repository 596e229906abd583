"""Where a training computes: what is chosen, what is said of it, and that all goes through it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training import strategies
from tests.training.processes import StartProcess
from tests.training.runs import Laboratory, Snapshot
from tests.training.scenarios import AVERAGED, FLOAT16, PLAIN
from trainer_service.child import randomness
from trainer_service.child.devices import CPU, Device, choose_device
from trainer_service.child.events import CancellationToken
from trainer_service.child.fingerprint import differences, fingerprint
from trainer_service.child.memory_errors import memory_wanted
from trainer_service.child.model_trainer import ModelTrainer
from trainer_service.child.optimization import Optimization, gradient_scaler
from trainer_service.child.pipe import Accepted, Failed, Finished
from trainer_service.child.snapshot_memory import SnapshotMemory
from trainer_service.child.training_pipeline import PipelineSettings, TrainingPipeline
from trainer_service.provenance import gpu_models
from trainer_service.registration import device as registered_device
from trainer_service.settings import TrainerSettings
from trainer_service.slots import MemorySlots
from trainer_service.strategies.models import quarter_means

STRATEGY = strategies.digits()
#: What a checkpoint says that was made on CUDA.
ON_CUDA = {"device": "cuda", "gpu": "NVIDIA H100, sm_90, 132 processors", "cuda": "13.0"}


class Watched(Device):
    """The CPU, with a record of what went through it."""

    def __init__(self) -> None:
        super().__init__(CPU.place)
        self.received_parts: list[torch.Tensor] = []
        self.pinned: list[int] = []
        self.said: list[str] = []

    def received(self, tensor: torch.Tensor) -> torch.Tensor:
        self.received_parts.append(tensor.clone())
        return self.received_parts[-1]

    def pin(self, memory: mmap.mmap) -> None:
        self.pinned.append(id(memory))
        self.said.append("pin")

    def unpin(self, memory: mmap.mmap) -> None:
        self.pinned.remove(id(memory))
        self.said.append("unpin")

    def copy_out(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        self.said.append("copy")
        super().copy_out(targets, sources)


class Copies(TorchDispatchMode):
    """Which operations copied how many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in ("clone", "copy_", "_to_copy", "_foreach_copy_"):
            source = args[1] if name in ("copy_", "_foreach_copy_") else args[0]
            tensors = source if isinstance(source, list) else [source]
            self.made.append((name, sum(tensor.nbytes for tensor in tensors)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3"])
def test_a_device_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_DEVICE", name)
    chosen = choose_device(TrainerSettings().device).place
    kind = name.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert (chosen.type, chosen.index or 0) == (kind, 3 if name == "cuda:3" else 0)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:0,1"])
def test_a_setting_that_names_no_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_DEVICE", name)
    with pytest.raises(ValidationError, match="device"):
        TrainerSettings()


def test_a_device_that_is_not_there_is_refused(start: StartProcess) -> None:
    process = start()
    process.train(STRATEGY, device="cuda:99")
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "ENVIRONMENT_MISMATCH"
    assert "cuda:99" in last.message
    assert "set EVERSTEP_DEVICE" in last.message
    assert process.exit_code() == 0
    assert process.snapshots == []


def test_a_checkpoint_of_another_kind_of_device(start: StartProcess, slots: MemorySlots) -> None:
    """Refused with what differs; where inexact is allowed, it is marked for ever."""
    process = start()
    process.train(STRATEGY)
    snapshot = process.until_snapshot(2)
    process.kill()
    assert snapshot.fingerprint["device"] == "cpu"
    assert "gpu" not in snapshot.fingerprint
    made_with = {**snapshot.fingerprint, **ON_CUDA}
    refused = start()
    refused.train(STRATEGY, resume=slots.newest, fingerprint=made_with)
    last = refused.run()
    assert isinstance(last, Failed)
    assert last.reason == "ENVIRONMENT_MISMATCH"
    for difference in ("device: cuda -> cpu", f"gpu: {ON_CUDA['gpu']} -> unset"):
        assert difference in last.message
    allowed = start()
    overrides = {"allow_inexact": True}
    allowed.train(STRATEGY, resume=slots.newest, fingerprint=made_with, overrides=overrides)
    assert isinstance(allowed.run(), Finished)
    (accepted,) = [said for said in allowed.said if isinstance(said, Accepted)]
    assert [event["kind"] for event in accepted.lineage] == ["INEXACT"]
    assert "device: cuda -> cpu" in str(accepted.lineage)
    assert allowed.snapshots[-1].lineage == accepted.lineage


def test_a_device_is_part_of_the_environment() -> None:
    class Other(Watched):
        def fingerprint(self) -> dict[str, str]:
            return ON_CUDA

    here, there = fingerprint(STRATEGY), fingerprint(STRATEGY, Other())
    assert here["device"] == "cpu"
    assert differences(here, there).keys() == ON_CUDA.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_mixed_precision_is_that_of_the_device(kind: str) -> None:
    place = torch.device(kind)
    scaler = gradient_scaler("fp16-mixed", place)
    assert scaler is not None
    assert scaler._device == kind
    trainer = Laboratory().train(FLOAT16, epochs=1).trainer
    trainer.state.place = place
    autocast: Any = trainer.optimization.autocast()
    assert (autocast.device, autocast.fast_dtype) == (kind, torch.float16)


def test_a_snapshot_is_one_copy(slots: MemorySlots) -> None:
    """On the CPU the state goes straight into the slot, and nothing else is made of it."""
    context = Laboratory().train(AVERAGED).trainer.capture()
    groups = context.tensor_groups()
    memory = SnapshotMemory(slots.descriptors)
    memory.write(0, groups)
    with Copies() as copies:
        memory.write(0, groups)
    assert copies.made == [("_foreach_copy_", state_bytes(context.tensors()))]


def test_a_restore_copies_each_tensor_once() -> None:
    whole = Laboratory().train(AVERAGED)
    tensors = whole.final.tensors
    assert {*tensors} == {"weights", "average_weights", "best_weights", "optimizer", "trace"}
    trainer = Laboratory().train(AVERAGED, initialisation=2).trainer
    with Copies() as copies:
        trainer.state.restore(whole.final.context())
    assert sum(size for _, size in copies.made) == state_bytes(tensors)
    assert Snapshot.of("FINAL", trainer.capture()).content() == whole.final.content()


def test_what_is_restored_is_the_trainings_own() -> None:
    """A slot that is written over, or steps that are taken, change nothing of the other."""
    context = Laboratory().train(AVERAGED).at_step(9).context()
    trainer = Laboratory().train(AVERAGED).trainer
    trainer.state.restore(context)
    restored = Snapshot.of("", trainer.capture()).content()
    for named in context.tensors().values():
        for tensor in named.values():
            tensor.zero_()
    assert Snapshot.of("", trainer.capture()).content() == restored


def test_memory_is_pinned_for_as_long_as_it_is_mapped(slots: MemorySlots) -> None:
    """A larger mapping takes an older one's place: its address may be anything's then."""
    device = Watched()
    memory = SnapshotMemory(slots.descriptors, device)
    memory.map(4096)
    assert device.said == ["pin", "pin"]
    small = {"a": torch.ones(8)}
    memory.write(0, [("weights", small)])
    content_of_slot_0 = memory.write(0, [("weights", {**small, "b": torch.ones(1 << 20)})])
    assert device.said == ["pin", "pin", "copy", "unpin", "pin", "copy"]
    assert len(device.pinned) == 2
    assert content_of_slot_0[0].kind == "weights"
    memory.close()
    assert device.pinned == []


@contextmanager
def watched_batches(trainers: list[ModelTrainer]) -> Iterator[list[torch.Tensor]]:
    """What the models of trainings were called with meanwhile."""
    called: list[torch.Tensor] = []
    build = ModelTrainer.__init__

    def watch(self: ModelTrainer, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        model.register_forward_pre_hook(lambda _model, inputs: called.extend(inputs))
        build(self, model, *args, **kwargs)
        trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelTrainer, "__init__", watch)
        yield called


@pytest.mark.parametrize("workers", [0, 1])
def test_every_batch_comes_through_the_device(workers: int) -> None:
    """Of training, validation and test; also of a team's own data."""
    strategy = strategies.stocks(data={"workers": workers}, training={"epochs": 1})
    device, trainers = Watched(), list[ModelTrainer]()
    settings = PipelineSettings(Path("nowhere"), device=device)
    pipeline = TrainingPipeline(settings, lambda *_: None, CancellationToken(), lambda *_: None)
    with watched_batches(trainers) as called:
        pipeline.train_strategy(strategy, {})
    assert trainers[0].device is device
    # Inputs and targets, in turns.
    wanted = device.received_parts[::2]
    assert len(called) == len(wanted) > 3
    assert all(one is other for one, other in zip(called, wanted, strict=True))


def test_a_devices_generator_is_seeded_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "_of_devices", [])
    generator = torch.Generator()
    randomness.seed_too(generator)
    randomness.seed_too(generator)
    assert randomness._of_devices == [generator]
    draws = []
    for parts in (("step", 1), ("step", 2), ("step", 1)):
        randomness.reseed(*parts)
        here = torch.rand(3)
        assert torch.equal(torch.rand(3, generator=generator), here)
        draws.append(here)
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (4, 6), (14, 14)])
def test_quarters_are_those_of_torch(size: tuple[int, int]) -> None:
    """Values and gradients, for the device on which torch has no order for them."""
    images = torch.rand(3, 2, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, 2, 2, dtype=torch.float64)
    results = []
    for pool in (quarter_means, lambda x: nn.functional.adaptive_avg_pool2d(x, 2)):
        means = pool(images)
        (gradient,) = torch.autograd.grad((means * weights).sum(), images)
        results.append((means, gradient))
    torch.testing.assert_close(*results)


def test_want_of_memory_names_the_gpu() -> None:
    device = "NVIDIA H100 80GB HBM3 (cuda:0)"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert f"no memory for the training on {device} (OutOfMemoryError" in memory_wanted(gpu, device)
    assert device not in memory_wanted(MemoryError(), device)


def test_after_a_devices_own_error_no_checkpoint_is_made() -> None:
    """It would give back nothing, or what nobody can trust; the newest one stands."""

    def broken(*_arguments: Any) -> float:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    kept: list[Snapshot] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimization, "accumulate", broken)
        with pytest.raises(torch.AcceleratorError):
            Laboratory().train(PLAIN, kept=kept)
    assert kept == []


def test_what_a_trainer_says_of_its_device(tmp_path: Path) -> None:
    assert gpu_models(tmp_path) == []
    for number, model in enumerate(("NVIDIA H100", "NVIDIA H100", "NVIDIA A100")):
        file = tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t {model}\nIRQ:   \t\t 16\n")
    gpus = gpu_models(tmp_path)
    assert gpus == ["NVIDIA A100", "NVIDIA H100"]
    assert registered_device("auto", "2.13.0", gpus) == "cuda (NVIDIA A100, NVIDIA H100)"
    assert registered_device("cuda:1", "2.13.0", gpus[:1]) == "cuda (NVIDIA A100)"
    assert registered_device("auto", "2.13.0+cpu", gpus) == "cpu"
    assert registered_device("auto", "2.13.0", []) == "cpu"
    assert registered_device("cpu", "2.13.0", gpus) == "cpu"


def state_bytes(tensors: dict[str, dict[str, torch.Tensor]]) -> int:
    return sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
