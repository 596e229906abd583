"""A trainer is killed at the named points of a checkpoint's way, to the store and back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grpc
import pytest

from checkpoint_store import open_blob_store
from checkpoint_store.checkpoints import read_manifest, verify_checkpoint
from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.manifest import Manifest
from everstep.rpc.options import open_sync_channel
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.progress_pb2 import Phase, TrainingProgress
from tests.services.conftest import ACCESS_KEY, SECRET_KEY, Settings
from tests.services.processes import ServiceProcess
from tests.services.strategies import digits

MakeTrainer = Callable[..., ServiceProcess]
Connect = Callable[[ServiceProcess], grpc.Channel]

STRATEGY = digits(epochs=1, checkpoint={"every_steps": 30})
OPERATION = "op-killed"
#: A folder whose sitecustomize kills the trainer at a point.
KILLED_AT = str(Path(__file__).parent / "killed_at")


def start(stub: TrainerServiceStub) -> list[TrainingProgress]:
    """What a training says, to its end or the trainer's."""
    request = trainer_pb2.StartTrainingRequest(operation_id=OPERATION, strategy=STRATEGY)
    return listen(stub.StartTraining(request))


def resume(
    stub: TrainerServiceStub, attempt: int, checkpoint: CheckpointReference
) -> list[TrainingProgress]:
    request = trainer_pb2.ResumeTrainingRequest(
        operation_id=OPERATION, attempt=attempt, strategy=STRATEGY, checkpoint=checkpoint
    )
    return listen(stub.ResumeTraining(request))


def listen(stream: Iterable[TrainingProgress]) -> list[TrainingProgress]:
    said = []
    try:
        for message in stream:
            said.append(message)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
    return said


def committed_steps(said: list[TrainingProgress]) -> list[int]:
    return [
        message.checkpoint_committed.checkpoint.step
        for message in said
        if message.HasField("checkpoint_committed")
    ]


class StoreContent:
    """What stands in the trainer's store."""

    def __init__(self, settings: Settings) -> None:
        self.store = open_blob_store(settings["EVERSTEP_STORE_URL"], ACCESS_KEY, SECRET_KEY)

    def verified_steps(self) -> list[int]:
        """Of every checkpoint that is listed; each is whole, and so is every blob."""
        for info in self.store.list("blobs/"):
            assert blob_key(blob_digest(self.store.get(info.key))) == info.key
        for manifest in self._manifests().values():
            verify_checkpoint(self.store, manifest)
        return sorted(manifest.step for manifest in self._manifests().values())

    def newest(self) -> CheckpointReference:
        """The checkpoint of the highest step."""
        key, manifest = max(self._manifests().items(), key=lambda item: item[1].step)
        return CheckpointReference(
            checkpoint_id=manifest.checkpoint_id,
            manifest_key=key,
            manifest_digest=blob_digest(self.store.get(key)),
        )

    def unnamed_blobs(self) -> int:
        """How many blobs no checkpoint names."""
        blobs = {info.key for info in self.store.list("blobs/")}
        for manifest in self._manifests().values():
            blobs -= {blob_key(entry.digest) for entry in manifest.blobs}
        return len(blobs)

    def _manifests(self) -> dict[str, Manifest]:
        listed = self.store.list(f"operations/{OPERATION}/")
        return {info.key: read_manifest(self.store, info.key) for info in listed}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The digests that the training ends with when nothing happens to its trainer."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {
        "EVERSTEP_STORE_URL": f"file://{folder}/store",
        "EVERSTEP_STATE_DIR": str(folder / "state"),
        "EVERSTEP_THREADS": "1",
        "EVERSTEP_SPARE_CHILDREN": "0",
    }
    trainer = ServiceProcess("trainer_service", settings, folder / "whole.log").start()
    with open_sync_channel(trainer.address) as channel:
        last = start(TrainerServiceStub(channel))[-1]
    assert last.HasField("completed"), last
    yield dict(last.completed.result.digests)
    trainer.kill()


def killed(trainer: ServiceProcess, point: str) -> ServiceProcess:
    """The trainer, which will be killed at that point."""
    trainer.settings |= {"PYTHONPATH": KILLED_AT, "EVERSTEP_TEST_KILL": point}
    return trainer


def again(trainer: ServiceProcess) -> ServiceProcess:
    """The trainer, dead by now, as another process that nothing kills."""
    trainer.kill()
    del trainer.settings["PYTHONPATH"], trainer.settings["EVERSTEP_TEST_KILL"]
    return trainer.start()


@pytest.mark.parametrize(
    ("point", "listed_more", "leaves_blobs"),
    [
        ("between two blobs", 0, True),
        ("in a blob", 0, False),
        ("before the manifest", 0, True),
        ("after the manifest", 1, False),
    ],
)
def test_killed_on_the_way_to_the_store(
    point: str,
    listed_more: int,
    leaves_blobs: bool,
    make_trainer: MakeTrainer,
    connect: Connect,
    store_settings: Settings,
    wanted: dict[str, str],
) -> None:
    content = StoreContent(store_settings)
    trainer = killed(make_trainer(), point).start()
    start(TrainerServiceStub(connect(trainer)))
    assert trainer.exit_code() == -signal.SIGKILL
    steps = content.verified_steps()
    assert (content.unnamed_blobs() > 0) == leaves_blobs

    stub = TrainerServiceStub(connect(again(trainer)))
    request = trainer_pb2.WatchTrainingRequest(operation_id=OPERATION, attempt=1)
    said = listen(stub.WatchTraining(request))
    assert said[-1].failed.error.reason == "TRAINER_RESTARTED"
    # No event speaks of a checkpoint that is not there; the newest one may not be told yet.
    assert steps[: len(steps) - listed_more] == committed_steps(said)
    rest = resume(stub, 2, content.newest())
    assert rest[-1].HasField("completed"), rest[-1]
    assert min(committed_steps(rest)) > steps[-1]
    assert rest[-1].completed.result.digests == wanted
    content.verified_steps()


def test_killed_on_the_way_back(
    make_trainer: MakeTrainer,
    connect: Connect,
    store_settings: Settings,
    wanted: dict[str, str],
) -> None:
    content = StoreContent(store_settings)
    trainer = killed(make_trainer(), "after the manifest").start()
    start(TrainerServiceStub(connect(trainer)))
    steps = content.verified_steps()

    trainer.kill()
    stub = TrainerServiceStub(connect(killed(trainer, "in the restore").start()))
    cut_off = resume(stub, 2, content.newest())
    assert trainer.exit_code() == -signal.SIGKILL
    assert cut_off[-1].phase_changed.phase == Phase.PHASE_RESTORING
    assert content.verified_steps() == steps

    rest = resume(TrainerServiceStub(connect(again(trainer))), 3, content.newest())
    assert rest[-1].completed.result.digests == wanted
