"""A trainer is frozen beyond its lease, with all that it trains, and wakes when another goes on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from checkpoint_store import open_blob_store
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_key
from everstep.control.v1 import checkpoints_pb2
from everstep.control.v1.operations_pb2 import OPERATION_STATE_COMPLETED, OperationEvent
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.control_plane.stored_checkpoints import HOUR, age
from tests.services.processes import ServiceProcess, wait_for
from tests.services.stack import Stack
from tests.services.strategies import digits

STRATEGY = digits(epochs=6)

Word = Callable[[TrainingProgress], bool]


def trains(attempt: int, epoch: int = 0) -> Callable[[OperationEvent], bool]:
    def wanted(event: OperationEvent) -> bool:
        word = event.progress
        is_step = word.HasField("step_metrics") and word.attempt == attempt
        return is_step and word.position.epoch >= epoch

    return wanted


def committed(word: TrainingProgress) -> bool:
    return word.HasField("checkpoint_committed")


def completed(word: TrainingProgress) -> bool:
    return word.HasField("completed")


class Machine:
    """A trainer and all its training processes, stopped and woken together."""

    def __init__(self, trainer: ServiceProcess) -> None:
        service = psutil.Process(trainer.process_id)
        self.children = service.children(recursive=True)
        self._processes = [service, *self.children]

    def freeze(self) -> None:
        for process in self._processes:
            process.suspend()

    def wake(self) -> None:
        for process in self._processes:
            process.resume()


class Scene:
    """An operation whose first attempt was lost with its frozen machine, and goes on elsewhere."""

    def __init__(self, stack: Stack, second: ServiceProcess, first: TrainerServiceStub) -> None:
        self.stack = stack
        self.first = first
        self.wanted = stack.train(STRATEGY).result.digests
        self.operation_id = stack.create(STRATEGY)
        stack.watch(self.operation_id, trains(1, epoch=1))
        self.machine = Machine(stack.trainer)
        self.machine.freeze()
        second.start()
        wait_for(lambda: stack.get(self.operation_id).attempts[1:], "the first one's lease to end")
        stack.watch(self.operation_id, trains(2))

    def wake_until(self, said: Word) -> TrainingProgress:
        """The machine wakes, and has said this before the control plane can know of it."""
        control_plane = psutil.Process(self.stack.control_plane.process_id)
        control_plane.suspend()
        try:
            self.machine.wake()
            request = trainer_pb2.WatchTrainingRequest(
                operation_id=self.operation_id, attempt=1, after_index=self.last_index()
            )
            stream = self.first.WatchTraining(request, timeout=60)
            word = next(word for word in stream if said(word))
            stream.cancel()
            return word
        finally:
            control_plane.resume()

    def last_index(self) -> int:
        """How far the first attempt is, as its trainer knows it."""
        answer = self.first.ListTrainings(trainer_pb2.ListTrainingsRequest(), timeout=30)
        [training] = [one for one in answer.trainings if one.operation_id == self.operation_id]
        return training.last_index

    def log(self) -> list[OperationEvent]:
        last = self.stack.get(self.operation_id).last_sequence
        return self.stack.watch(self.operation_id, lambda event: event.sequence >= last)

    def late_note(self) -> str:
        """What the log says of the late words, once it says it."""

        def notes() -> list[str]:
            found = [event.note for event in self.log() if event.HasField("note")]
            return [note.message for note in found if note.reason == "LATE_EVENTS"]

        [message] = wait_for(notes, "a note of the late words")
        return message

    def listed(self) -> list[Checkpoint]:
        request = checkpoints_pb2.ListCheckpointsRequest(page_size=500)
        return list(self.stack.checkpoints.ListCheckpoints(request, timeout=30).checkpoints)

    def has_stopped(self) -> bool:
        """The first trainer keeps nothing of the attempt, and its process is gone."""
        answer = self.first.ListTrainings(trainer_pb2.ListTrainingsRequest(), timeout=30)
        return not answer.trainings and not any(
            child.is_running() for child in self.machine.children
        )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def scene(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
    store: Path,
) -> Scene:
    settings = {"EVERSTEP_STORE_URL": store.as_uri()}
    control_plane = make_control_plane(EVERSTEP_LEASE_SECONDS="3", **settings).start()
    settings["EVERSTEP_CONTROL_PLANE"] = control_plane.address
    first = make_trainer("trainer-1", **settings).start()
    stack = Stack(control_plane, first, connect)
    return Scene(stack, make_trainer("trainer-2", **settings), TrainerServiceStub(connect(first)))


def assert_fenced(scene: Scene, store: Path) -> None:
    """The operation is the second attempt's alone, from its end on and in every place."""
    operation = scene.stack.get(scene.operation_id)
    assert operation.state == OPERATION_STATE_COMPLETED
    assert [(a.trainer_id, a.end) for a in operation.attempts] == [
        ("trainer-1", "LOST"),
        ("trainer-2", "COMPLETED"),
    ]
    assert operation.result.digests == scene.wanted
    assert operation.attempts[1].first_step > 1
    open_attempt = 0
    for event in scene.log():
        if event.HasField("state_changed"):
            dispatched = event.state_changed.reason == "DISPATCHED"
            open_attempt = event.state_changed.attempt if dispatched else 0
        assert event.progress.attempt in (0, open_attempt), event
        if event.progress.HasField("checkpoint_committed"):
            key = event.progress.checkpoint_committed.checkpoint.reference.manifest_key
            assert f"/attempts/{open_attempt}/" in key

    blobs = open_blob_store(store.as_uri())
    listed = {checkpoint.reference.manifest_key for checkpoint in scene.listed()}
    late = {info.key for info in blobs.list("operations/")} - listed
    assert late
    own = f"operations/{scene.operation_id}/attempts/1/checkpoints/"
    assert all(key.startswith(own) for key in late), late

    age(store, 2 * HOUR)
    grace = Duration()
    grace.FromTimedelta(timedelta(0))
    scene.stack.checkpoints.CollectGarbage(
        checkpoints_pb2.CollectGarbageRequest(grace=grace), timeout=60
    )
    assert {info.key for info in blobs.list("operations/")} == listed
    named = {blob_key(entry.digest) for key in listed for entry in read_manifest(blobs, key).blobs}
    assert {info.key for info in blobs.list("blobs/")} == named


def test_one_that_wakes_while_the_other_trains_is_stopped(scene: Scene, store: Path) -> None:
    late = scene.wake_until(committed).checkpoint_committed.checkpoint
    wait_for(scene.has_stopped, "the first trainer to stop its process")
    note = scene.late_note()
    assert f"a checkpoint at step {late.step}" in note
    assert "its completion" not in note
    scene.stack.finished(scene.operation_id)
    reasons = [event.note.reason or event.state_changed.reason for event in scene.log()]
    assert reasons.index("LATE_EVENTS") < reasons.index("COMPLETED")
    assert_fenced(scene, store)


def test_one_that_wakes_when_the_other_has_completed_completes_nothing(
    scene: Scene, store: Path
) -> None:
    before = scene.stack.finished(scene.operation_id)
    scene.wake_until(completed)
    assert "its completion" in scene.late_note()
    wait_for(scene.has_stopped, "the first trainer to forget the attempt")
    after = scene.stack.get(scene.operation_id)
    assert after.attempts == before.attempts
    assert after.latest_checkpoint == before.latest_checkpoint
    assert after.end_time == before.end_time
    assert_fenced(scene, store)
