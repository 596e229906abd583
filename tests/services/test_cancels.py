"""Cancelled at every moment, and resumed by two at once: each has one defined end."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from everstep.control.v1 import operations_pb2
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_CANCELLING,
    OPERATION_STATE_COMPLETED,
    Operation,
    OperationEvent,
)
from everstep.errors import EverstepError, Reason
from everstep.object_store_process import MinioProcess
from everstep.rpc.options import open_sync_channel
from everstep.rpc.status import error_from_call
from everstep.training.v1.checkpoint_pb2 import CheckpointTrigger
from everstep.training.v1.progress_pb2 import Phase
from tests.chaos.links import Link, Network
from tests.services.conftest import ACCESS_KEY, SECRET_KEY
from tests.services.processes import ServiceProcess, wait_for
from tests.services.stack import Stack
from tests.services.strategies import digits

LONG = digits(epochs=2000, checkpoint={"every_steps": 20, "every_epochs": 0})
SHORT = digits(epochs=2, checkpoint={"every_steps": 50, "every_epochs": 0})
#: A store that hangs is given up after a minute; a cancellation must not wait for it.
AT_ONCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def link(minio: MinioProcess) -> Iterator[Link]:
    """The way from the trainer to the store."""
    with Network() as network:
        yield network.link("trainer to store", f"127.0.0.1:{minio.port}")


@pytest.fixture(scope="module")
def module_stack(
    tmp_path_factory: pytest.TempPathFactory, minio: MinioProcess, link: Link
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("cancels")
    bucket = f"cancels-{secrets.token_hex(4)}"
    keys = {"EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY, "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY}
    control_plane = ServiceProcess(
        "control_plane",
        {
            **keys,
            "EVERSTEP_STORE_URL": minio.url(bucket),
            "EVERSTEP_DATABASE_URL": f"sqlite:///{folder / 'control-plane.db'}",
        },
        folder / "control-plane.log",
    ).start()
    trainer = ServiceProcess(
        "trainer_service",
        {
            **keys,
            "EVERSTEP_STORE_URL": f"s3+http://{link.address}/{bucket}",
            "EVERSTEP_CONTROL_PLANE": control_plane.address,
            "EVERSTEP_TRAINER_ID": "trainer-1",
            "EVERSTEP_STATE_DIR": str(folder / "trainer"),
            "EVERSTEP_THREADS": "1",
        },
        folder / "trainer.log",
    ).start()
    with open_sync_channel(control_plane.address) as channel:
        yield Stack(control_plane, trainer, lambda _service: channel)
    trainer.kill()
    control_plane.kill()


@pytest.fixture
def stack(module_stack: Stack, link: Link) -> Iterator[Stack]:
    yield module_stack
    link.heal()


def cancel(stack: Stack, operation_id: str, discard: bool) -> Operation:
    return stack.operations.CancelOperation(
        operations_pb2.CancelOperationRequest(operation_id=operation_id, discard=discard),
        timeout=10,
    )


def resume(stack: Stack, operation_id: str) -> Operation | EverstepError:
    try:
        return stack.operations.ResumeOperation(
            operations_pb2.ResumeOperationRequest(operation_id=operation_id), timeout=10
        )
    except grpc.RpcError as failure:
        return error_from_call(failure)


def ended(stack: Stack, operation_id: str, patience: float = AT_ONCE_SECONDS) -> Operation:
    """The operation, CANCELLED, with no attempt left open."""

    def cancelled() -> Operation | None:
        operation = stack.get(operation_id)
        return operation if operation.state == OPERATION_STATE_CANCELLED else None

    operation = wait_for(cancelled, f"{operation_id} to be cancelled", patience)
    assert all(attempt.end for attempt in operation.attempts)
    assert not operation.HasField("error")
    return operation


def in_phase(phase: Phase.ValueType) -> Callable[[OperationEvent], bool]:
    return lambda event: event.progress.phase_changed.phase == phase


def is_committed(event: OperationEvent) -> bool:
    return event.progress.HasField("checkpoint_committed")


@pytest.mark.parametrize("discard", [False, True], ids=["kept", "discarded"])
def test_at_every_moment(stack: Stack, link: Link, discard: bool) -> None:
    # During the start, while it waits for a store that hangs.
    link.hold()
    operation_id = stack.create(LONG)
    stack.watch(operation_id, in_phase(Phase.PHASE_PREPARING))
    cancel(stack, operation_id, discard)
    operation = ended(stack, operation_id)
    assert not operation.resumable
    assert isinstance(refusal := resume(stack, operation_id), EverstepError)
    assert refusal.reason is Reason.NO_CHECKPOINT
    link.heal()

    # During an upload: what is to be kept waits for the store.
    operation_id = stack.create(LONG)
    stack.watch(operation_id, is_committed)
    link.hold()
    stack.watch(operation_id, lambda event: event.progress.HasField("checkpoint_delayed"))
    cancel(stack, operation_id, discard)
    if not discard:
        stack.watch(operation_id, in_phase(Phase.PHASE_FINISHING))
        assert stack.get(operation_id).state == OPERATION_STATE_CANCELLING
        link.heal()
    operation = ended(stack, operation_id)
    link.heal()
    assert operation.resumable
    kept = operation.latest_checkpoint.trigger
    assert (kept == CheckpointTrigger.CHECKPOINT_TRIGGER_CANCELLATION) is not discard
    checkpoint = operation.latest_checkpoint.reference

    # During the resume, while it waits for a store that hangs.
    link.hold()
    assert isinstance(resume(stack, operation_id), Operation)
    last = stack.get(operation_id).last_sequence
    stack.watch(operation_id, in_phase(Phase.PHASE_PREPARING), after_sequence=last)
    cancel(stack, operation_id, discard)
    operation = ended(stack, operation_id)
    link.heal()
    assert operation.resumable
    assert operation.latest_checkpoint.reference == checkpoint
    assert len(operation.attempts) == 2

    # After it was cancelled: nothing more happens.
    assert cancel(stack, operation_id, discard).state == OPERATION_STATE_CANCELLED


def test_two_resume_at_once_and_one_wins(stack: Stack) -> None:
    operation_id = stack.create(SHORT)
    stack.watch(operation_id, is_committed)
    cancel(stack, operation_id, discard=True)
    ended(stack, operation_id)
    answers: list[Operation | EverstepError] = []
    together = threading.Barrier(2)

    def ask() -> None:
        together.wait()
        answers.append(resume(stack, operation_id))

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    (loser,) = [answer for answer in answers if isinstance(answer, EverstepError)]
    assert loser.reason in (Reason.RESUME_CONFLICT, Reason.ALREADY_RUNNING)
    completed = stack.finished(operation_id)
    assert completed.state == OPERATION_STATE_COMPLETED
    assert [attempt.end for attempt in completed.attempts] == ["CANCELLED", "COMPLETED"]

    # After completion there is nothing to cancel, whatever is to become of its state.
    for discard in (False, True):
        with pytest.raises(grpc.RpcError) as refused:
            cancel(stack, operation_id, discard)
        assert error_from_call(refused.value).reason is Reason.ALREADY_FINISHED
    assert stack.get(operation_id) == completed
