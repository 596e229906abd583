"""Dead, unreachable and stalled: told apart, answered apart, and a healthy training left alone."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from control_plane.hearing import UNREACHED_LEASES
from everstep.control.v1.operations_pb2 import (
    LIVENESS_STATE_DEAD,
    LIVENESS_STATE_HEARD,
    LIVENESS_STATE_STALLED,
    LIVENESS_STATE_UNREACHABLE,
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_PENDING,
    OPERATION_STATE_RUNNING,
    LivenessState,
    Operation,
    OperationEvent,
)
from tests.control_plane.conftest import LEASE_SECONDS, Client, StartTrainer, assert_whole
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining, until
from tests.services.processes import ServiceProcess


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is heard is the same whatever keeps it."""
    return f"sqlite:///{tmp_path / 'control-plane.db'}"


@pytest.fixture
def impatient(control_plane: ServiceProcess) -> ServiceProcess:
    """A control plane that leaves an attempt no longer than it must to one out of reach."""
    control_plane.kill()
    control_plane.settings["EVERSTEP_UNREACHABLE_SECONDS"] = "0.1"
    return control_plane.start()


def notes(events: list[OperationEvent]) -> list[str]:
    return [event.note.reason for event in events if event.HasField("note")]


async def log_of(client: Client, operation_id: str) -> list[OperationEvent]:
    last = (await client.get(operation_id)).last_sequence
    return await client.watch(operation_id, lambda event: event.sequence >= last)


async def until_it_is(
    client: Client, operation_id: str, state: LivenessState.ValueType
) -> Operation:
    """The operation, once this is heard of it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        operation = await client.get(operation_id)
        if operation.liveness.state == state:
            return operation
    raise AssertionError(f"waited in vain for {LivenessState.Name(state)}: {operation.liveness}")


async def until_leases_later(trainer: ScriptedTrainer, leases: int) -> None:
    """It is heard three times a lease."""
    announced = trainer.announced + 3 * leases + 2
    await until(lambda: trainer.announced >= announced, f"{leases} leases to pass")


async def begun(client: Client, trainer: ScriptedTrainer) -> tuple[str, ScriptedTraining]:
    """An operation whose training has said that it trains."""
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await client.watch(operation_id, lambda event: event.progress.index == 1)
    liveness = (await client.get(operation_id)).liveness
    assert liveness.state == LIVENESS_STATE_HEARD
    assert not liveness.message
    assert not liveness.HasField("since")
    return operation_id, training


async def everstep(control_plane: ServiceProcess, *arguments: str) -> str:
    """What the command line prints."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "everstep"),
        *arguments,
        env={**os.environ, "EVERSTEP_ADDRESS": control_plane.address},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def test_a_trainer_out_of_reach_keeps_its_training(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess
) -> None:
    operation_id, training = await begun(client, trainer)
    began = time.time()
    await trainer.stop_serving()
    operation = await until_it_is(client, operation_id, LIVENESS_STATE_UNREACHABLE)
    assert operation.state == OPERATION_STATE_RUNNING
    assert trainer.address in operation.liveness.message
    assert "its training goes on" in operation.liveness.message
    assert abs(operation.liveness.since.ToNanoseconds() / 1e9 - began) < LEASE_SECONDS
    shown = await everstep(control_plane, "show", operation_id)
    assert " ".join(shown.split()).find("trouble unreachable since") > 0, shown
    assert "running, unreachable" in await everstep(control_plane, "ops")
    await until_leases_later(trainer, UNREACHED_LEASES)
    training.epoch(1)
    assert (await client.get(operation_id)).state == OPERATION_STATE_RUNNING
    await trainer.start()
    await until_it_is(client, operation_id, LIVENESS_STATE_HEARD)
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1
    assert not operation.HasField("liveness")
    events = await client.watch(operation_id)
    assert notes(events) == ["TRAINER_UNREACHABLE", "TRAINER_REACHED"]
    assert_whole(events)


async def test_a_training_that_says_nothing_is_stalled_and_goes_on(
    client: Client, trainer: ScriptedTrainer
) -> None:
    operation_id, training = await begun(client, trainer)
    operation = await until_it_is(client, operation_id, LIVENESS_STATE_STALLED)
    assert operation.state == OPERATION_STATE_RUNNING
    assert "its training says nothing" in operation.liveness.message
    training.show(step=20, loss=0.5)
    await until_it_is(client, operation_id, LIVENESS_STATE_HEARD)
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1
    assert notes(await client.watch(operation_id)) == []


async def test_a_dead_trainer_is_shown_as_dead_until_its_attempt_is_closed(
    client: Client, trainer: ScriptedTrainer, control_plane: ServiceProcess
) -> None:
    operation_id, _ = await begun(client, trainer)
    control_plane.kill()
    await trainer.stop()
    lease_end = time.monotonic() + 1.1 * LEASE_SECONDS
    await until(lambda: time.monotonic() > lease_end, "the lease to end")
    control_plane.start()
    # It has one lease more to be heard.
    operation = await until_it_is(client, operation_id, LIVENESS_STATE_DEAD)
    assert operation.state == OPERATION_STATE_RUNNING
    assert "is not heard any more" in operation.liveness.message
    operation = await client.until_state(operation_id, OPERATION_STATE_PENDING)
    assert operation.attempts[0].end == "LOST"
    assert not operation.HasField("liveness")


async def test_a_trainer_out_of_reach_for_too_long_gives_its_training_to_another(
    impatient: ServiceProcess, client: Client, start_trainer: StartTrainer
) -> None:
    del impatient
    first = await start_trainer("trainer-1")
    operation_id, training = await begun(client, first)
    training.commit(training.checkpoint(10))
    second = await start_trainer("trainer-2")
    await client.watch(operation_id, lambda event: event.progress.index == 2)
    await first.stop_serving()
    resumed = await second.begun(operation_id, 2)
    assert resumed.request.checkpoint.checkpoint_id == f"ck-{operation_id}-1-10"
    log = await log_of(client, operation_id)
    [lost] = [e.state_changed for e in log if e.state_changed.reason == "ATTEMPT_LOST"]
    assert "EVERSTEP_ADVERTISE" in lost.message
    resumed.complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)


async def test_streams_that_break_far_apart_in_one_silence_are_no_trouble(
    impatient: ServiceProcess, client: Client, trainer: ScriptedTrainer
) -> None:
    """A stream that is open is a sign of life, before anything comes on it."""
    del impatient
    operation_id, training = await begun(client, trainer)
    trainer.break_streams()
    await until(lambda: trainer.watch_requests, "a watch")
    await until_leases_later(trainer, UNREACHED_LEASES)
    liveness = (await client.get(operation_id)).liveness
    assert liveness.state in (LIVENESS_STATE_HEARD, LIVENESS_STATE_STALLED), liveness
    trainer.break_streams()
    await until(lambda: trainer.watch_requests[1:], "another watch")
    training.complete()
    operation = await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    assert len(operation.attempts) == 1
    assert notes(await client.watch(operation_id)) == []
