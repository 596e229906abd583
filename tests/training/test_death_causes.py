"""What a training process died of: told from its exit, its error, and the kernel's count."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from tests.training import strategies
from tests.training.processes import StartProcess
from trainer_service.cgroups import memory_kills, own_cgroups
from trainer_service.child.memory_errors import is_lost_worker, is_out_of_memory
from trainer_service.child.pipe import OUT_OF_MEMORY_EXIT, Failed, TakeCheckpoint
from trainer_service.death_causes import death_cause


@pytest.mark.parametrize(
    ("exit_code", "memory_kills", "cause"),
    [
        (-signal.SIGKILL, 0, "signal SIGKILL"),
        (-signal.SIGKILL, 1, "signal SIGKILL (out of memory)"),
        (-signal.SIGSEGV, 1, "signal SIGSEGV"),
        (-64, 0, "signal SIGRTMAX"),
        (-60, 0, "signal 60"),
        (3, 1, "exit code 3"),
        (OUT_OF_MEMORY_EXIT, 0, "out of memory"),
    ],
)
def test_the_cause_of_a_death(exit_code: int, memory_kills: int, cause: str) -> None:
    assert death_cause(exit_code, memory_kills) == cause


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception, match=r"(?s).*") as caught:
        call()
    return caught.value


def wrapped() -> None:
    try:
        bytearray(1 << 60)
    except MemoryError as error:
        raise ValueError("the table cannot be read") from error


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: bytearray(1 << 60)),
        raised(lambda: torch.empty(1 << 60)),
        raised(wrapped),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=repr,
)
def test_an_error_for_want_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("out of memory, said a library"), OSError(errno.ENOSPC, "full")],
    ids=repr,
)
def test_another_error(error: Exception) -> None:
    assert not is_out_of_memory(error)


class Machine:
    """A folder in the place of the machine's `proc` and `sys`."""

    def __init__(self, root: Path, own: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", own)
        self.count("proc/vmstat", 40)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def count(self, path: str, kills: int) -> None:
        self.write(path, f"oom 9\noom_kill {kills}\noom_group_kill 0\n")


def test_kills_are_counted_in_the_nearest_group_that_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/pod/trainer\n")
    assert memory_kills(tmp_path) == 40
    machine.count("sys/fs/cgroup/memory.events", 30)
    assert memory_kills(tmp_path) == 30
    machine.count("sys/fs/cgroup/pod/memory.events", 20)
    machine.count("sys/fs/cgroup/other/memory.events", 50)
    assert memory_kills(tmp_path) == 20
    machine.count("sys/fs/cgroup/pod/trainer/memory.events", 10)
    assert memory_kills(tmp_path) == 10


def test_kills_in_groups_of_version_1(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:cpu,memory:/pod\n2:cpuset:/elsewhere\n0::/\n")
    machine.count("sys/fs/cgroup/memory/pod/memory.oom_control", 7)
    assert memory_kills(tmp_path) == 7


def test_without_any_count(tmp_path: Path) -> None:
    assert memory_kills(tmp_path) == 0
    assert own_cgroups(tmp_path) == []


def test_without_memory_no_checkpoint_is_made_of_the_failure(start: StartProcess) -> None:
    """The newest snapshot is gone on from: another one would change where a rollback goes to."""
    process = start("tests.training.starved_process", ("evaluation",))
    process.train(strategies.digits(checkpoint={"every_steps": 3}))
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == "OUT_OF_MEMORY"
    assert [(snapshot.trigger, snapshot.step) for snapshot in process.snapshots] == [
        ("PERIODIC", 3)
    ]


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        ("tests.training.starved_process", ("loading",), "OUT_OF_MEMORY"),
        ("trainer_service.child", (), "TRAINING_FAILED"),
    ],
    ids=["that the kernel counted", "that it did not count"],
)
def test_a_killed_loading_worker(
    module: str, arguments: tuple[str, ...], reason: str, start: StartProcess
) -> None:
    process = start(module, arguments)
    process.train(strategies.digits(training={"epochs": 1000}, data={"workers": 1}))
    process.until_snapshot(1)
    child = psutil.Process(process.process.pid)
    [worker] = set(child.children(recursive=True)) - set(child.children())
    worker.kill()
    last = process.run()
    assert isinstance(last, Failed)
    assert last.reason == reason, last


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 12, 34) exited unexpectedly"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        EOFError(),
    ],
    ids=repr,
)
def test_a_lost_worker(error: Exception) -> None:
    assert is_lost_worker(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Segmentation fault. "),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        ValueError("DataLoader worker (pid(s) 12) exited unexpectedly"),
    ],
    ids=repr,
)
def test_no_lost_worker(error: Exception) -> None:
    assert not is_lost_worker(error)


@pytest.mark.parametrize("point", ["hearing", "last word"])
def test_a_process_without_memory_for_a_word_ends(point: str, start: StartProcess) -> None:
    """It would not hear that it is to stop, or say that it failed."""
    process = start("tests.training.starved_process", (point,))
    process.train(strategies.digits())
    process.say(TakeCheckpoint())
    assert process.run() is None
    assert process.exit_code() == OUT_OF_MEMORY_EXIT
