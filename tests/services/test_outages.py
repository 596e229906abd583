"""Disks that are full, a database that another process holds, clocks that jump: all goes on."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from everstep.control.v1 import operations_pb2, trainers_pb2
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    Operation,
    OperationEvent,
)
from everstep.errors import EverstepError, Reason
from everstep.object_store_process import MinioProcess
from everstep.rpc.options import open_sync_channel
from everstep.rpc.status import error_from_call
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.services.conftest import ACCESS_KEY, SECRET_KEY
from tests.services.processes import PATIENCE_SECONDS, ServiceProcess, no_room, wait_for
from tests.services.stack import Stack
from tests.services.strategies import digits

#: Less than a call waits for the database: a heartbeat that fails is a lease that ends.
LEASE_SECONDS = 2
#: The control plane is away for longer than a lease.
OUTAGE_SECONDS = float(os.environ.get("EVERSTEP_TEST_OUTAGE_SECONDS", "3"))
JUMPING_CLOCK = str(Path(__file__).parent / "jumping_clock")
STRATEGY = digits(epochs=2, checkpoint={"every_steps": 60, "every_epochs": 0})


class Clocks:
    """What each service's clock is ahead by."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def settings(self, service: str) -> dict[str, str]:
        path = os.pathsep.join([JUMPING_CLOCK, os.environ.get("PYTHONPATH", "")])
        return {"EVERSTEP_TEST_CLOCK": str(self._folder / service), "PYTHONPATH": path}

    def set(self, service: str, seconds_ahead: float) -> None:
        (self._folder / service).write_text(str(seconds_ahead))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outages")


@pytest.fixture(scope="module")
def clocks(folder: Path) -> Clocks:
    return Clocks(folder)


@pytest.fixture(scope="module")
def stack(folder: Path, clocks: Clocks, minio: MinioProcess) -> Iterator[Stack]:
    """Both services, for all tests here."""
    store = {
        "EVERSTEP_STORE_URL": minio.url("outages"),
        "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
        "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
    }
    control_plane = ServiceProcess(
        "control_plane",
        {
            **store,
            **clocks.settings("control_plane"),
            "EVERSTEP_DATABASE_URL": f"sqlite:///{folder / 'control-plane.db'}",
            "EVERSTEP_LEASE_SECONDS": str(LEASE_SECONDS),
        },
        folder / "control-plane.log",
    ).start()
    trainer = ServiceProcess(
        "trainer_service",
        {
            **store,
            **clocks.settings("trainer_service"),
            "EVERSTEP_CONTROL_PLANE": control_plane.address,
            "EVERSTEP_TRAINER_ID": "trainer-1",
            "EVERSTEP_STATE_DIR": str(folder / "trainer"),
            "EVERSTEP_THREADS": "1",
            "EVERSTEP_SPARE_CHILDREN": "1",
        },
        folder / "trainer.log",
    ).start()
    with open_sync_channel(control_plane.address) as channel:
        yield Stack(control_plane, trainer, lambda _service: channel)
    trainer.kill()
    control_plane.kill()


@pytest.fixture(scope="module")
def reference(stack: Stack) -> Operation:
    """The training as it ends when nothing happens."""
    return stack.train(STRATEGY)


def after_step(step: int) -> Callable[[OperationEvent], bool]:
    return lambda event: event.progress.position.step > step


mid_epoch = after_step(60)


def refusal(stack: Stack) -> EverstepError:
    """What CreateOperation is answered with."""
    try:
        stack.operations.CreateOperation(
            operations_pb2.CreateOperationRequest(strategy=STRATEGY), timeout=10
        )
    except grpc.RpcError as failure:
        return error_from_call(failure)
    raise AssertionError("not refused")


def assert_unharmed(stack: Stack, operation_id: str, reference: Operation) -> None:
    """One attempt, the same bytes, and a log without a gap in which nothing goes back."""
    operation = stack.finished(operation_id)
    assert operation.state == OPERATION_STATE_COMPLETED, operation
    assert [attempt.end for attempt in operation.attempts] == ["COMPLETED"]
    assert operation.result.digests == reference.result.digests
    durable = [event for event in stack.watch(operation_id) if event.sequence]
    assert [event.sequence for event in durable] == list(range(1, len(durable) + 1))
    indexes = [event.progress.index for event in durable if event.HasField("progress")]
    assert indexes == list(range(1, len(indexes) + 1))
    positions = [event.progress.position for event in durable if event.progress.position.step]
    fractions = [position.fraction for position in positions]
    assert fractions == sorted(fractions)
    assert all(0 <= position.eta_seconds < 600 for position in positions)


@contextmanager
def held_database(folder: Path) -> Iterator[None]:
    """Another process has the database for itself."""
    with closing(sqlite3.connect(folder / "control-plane.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("outage", "said"), [("held", "held by another process"), ("full", "has no room")]
)
def test_a_database_that_takes_nothing_loses_nothing(
    stack: Stack, folder: Path, reference: Operation, outage: str, said: str
) -> None:
    operation_id = stack.create(STRATEGY)
    stack.watch(operation_id, mid_epoch)
    trouble = no_room(stack.control_plane) if outage == "full" else held_database(folder)
    with trouble:
        silent_since = stack.get(operation_id).last_sequence
        began = time.monotonic()
        refused = [refusal(stack)]
        if outage == "held":
            # What followed the training was turned down, too, and thinks about what to do.
            wait_for(lambda: time.monotonic() > began + 9.5, "more than a call is given")
        # Longer than a lease, in which nobody's heartbeat can be stored.
        while not lease_has_passed(stack):
            refused.append(refusal(stack))
        assert {error.reason for error in refused} == {Reason.DATABASE_UNAVAILABLE}
        assert {error.status for error in refused} == {"UNAVAILABLE"}
        assert said in refused[0].message
        assert stack.get(operation_id).last_sequence == silent_since
    assert_unharmed(stack, operation_id, reference)


def lease_has_passed(stack: Stack) -> bool:
    (trainer,) = stack.trainers.ListTrainers(
        trainers_pb2.ListTrainersRequest(), timeout=10
    ).trainers
    return not trainer.alive


def test_the_results_of_a_training_that_ended_while_the_control_plane_was_away(
    stack: Stack, reference: Operation
) -> None:
    operation_id = stack.create(STRATEGY)
    stack.watch(operation_id, mid_epoch)
    stack.control_plane.kill()
    back_at = time.monotonic() + OUTAGE_SECONDS
    with open_sync_channel(stack.trainer.address) as channel:
        trainer = TrainerServiceStub(channel)
        wait_for(
            lambda: (
                time.monotonic() >= back_at
                and all(
                    training.finished
                    for training in trainer.ListTrainings(
                        trainer_pb2.ListTrainingsRequest()
                    ).trainings
                )
            ),
            "the training to end unseen",
            OUTAGE_SECONDS + PATIENCE_SECONDS,
        )
    stack.control_plane.start()
    assert_unharmed(stack, operation_id, reference)


def test_a_trainer_whose_disk_is_full_waits_and_takes_no_work(
    stack: Stack, reference: Operation
) -> None:
    operation_id = stack.create(STRATEGY)
    stack.watch(operation_id, mid_epoch)
    with no_room(stack.trainer):
        shown = stack.watch(operation_id, lambda event: event.progress.HasField("warning"))[-1]
        assert shown.progress.warning.reason == "JOURNAL_FULL"
        assert "EVERSTEP_STATE_DIR" in shown.progress.warning.message
    assert_unharmed(stack, operation_id, reference)

    with no_room(stack.trainer):
        operation_id = stack.create(STRATEGY)
        waiting = wait_for(
            lambda: next(
                (o for o in [stack.get(operation_id)] if "none is registered" in o.waiting_for),
                None,
            ),
            "the trainer to take no work",
        )
        assert {attempt.end for attempt in waiting.attempts} == {"REFUSED"}
        assert len(waiting.attempts) <= 2
        assert waiting.attempts[0].end_reason == "NO_CAPACITY"
    completed = stack.finished(operation_id)
    assert completed.state == OPERATION_STATE_COMPLETED
    assert completed.result.digests == reference.result.digests


def test_clocks_that_jump_by_an_hour_harm_nothing(
    stack: Stack, clocks: Clocks, reference: Operation
) -> None:
    operation_id = stack.create(STRATEGY)
    jumps = [
        ("control_plane", 3600.0),
        ("trainer_service", 3600.0),
        ("control_plane", -3600.0),
        ("trainer_service", -3600.0),
    ]
    for number, (service, seconds) in enumerate(jumps):
        stack.watch(operation_id, after_step(40 + 60 * number))
        clocks.set(service, seconds)
    assert_unharmed(stack, operation_id, reference)
    # Back again, with a training that waits for a trainer meanwhile.
    operation_id = stack.create(digits(epochs=1))
    for service, _ in jumps[:2]:
        clocks.set(service, 0)
    operation = stack.finished(operation_id)
    assert operation.state == OPERATION_STATE_COMPLETED
    assert len(operation.attempts) == 1
