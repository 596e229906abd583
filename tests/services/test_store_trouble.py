"""A store that is full, refuses the credentials or is slow in mid-run: told apart, and waited for.

One that is away: see test_store_away.py.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from everstep.object_store_process import MinioProcess
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import CHECKPOINT_TRIGGER_FINAL, CheckpointReference
from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.chaos.links import Link, Network
from tests.services.conftest import ACCESS_KEY, SECRET_KEY
from tests.services.processes import ServiceProcess, no_room
from tests.services.store_door import StoreDoor
from tests.services.strategies import digits

MakeTrainer = Callable[..., ServiceProcess]
Connect = Callable[[ServiceProcess], grpc.Channel]
Wanted = Callable[[TrainingProgress], bool]

OPERATION = "op-trouble"
#: Ends by being cancelled.
LONG = digits(epochs=2000, checkpoint={"every_steps": 20, "every_epochs": 0})
SHORT = digits(epochs=2, checkpoint={"every_steps": 40, "every_epochs": 0})
#: As of test_store_away.py.
OUTAGE_SECONDS = float(os.environ.get("EVERSTEP_TEST_OUTAGE_SECONDS", "2"))
#: Far less than a store is waited for, far more than training takes between two words.
LONGEST_PAUSE_SECONDS = 5.0


class Store:
    """MinIO's server code behind a link and a door."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._accepting = MinioProcess(folder, 0, ACCESS_KEY, SECRET_KEY)
        self._accepting.start()
        self._accepting.wait_ready(60)
        port = self._accepting.port
        self._refusing = MinioProcess(folder, port, ACCESS_KEY, "another-secret")
        self.door = StoreDoor(port)
        self._link = network.link("trainer to store")
        self._link.target = self.door.url("x").split("/")[2]

    @property
    def link(self) -> Link:
        return self._link

    def settings(self) -> dict[str, str]:
        return {
            "EVERSTEP_STORE_URL": f"s3+http://{self._link.address}/trouble-{secrets.token_hex(4)}",
            "EVERSTEP_STORE_ACCESS_KEY": ACCESS_KEY,
            "EVERSTEP_STORE_SECRET_KEY": SECRET_KEY,
        }

    def fill(self) -> None:
        self.door.full = True

    def refuse(self) -> None:
        """The server has another secret from here on."""
        self._accepting.stop()
        self._refusing.start()
        self._refusing.wait_ready(60)

    def mend(self) -> None:
        self.door.full = False
        self._link.heal()
        if self._refusing.pid is not None:
            self._refusing.stop()
            self._accepting.start()
            self._accepting.wait_ready(60)

    def stop(self) -> None:
        self._accepting.stop()
        self._refusing.stop()


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Network() as network:
        made = Store(tmp_path_factory.mktemp("store"), network)
        with made.door:
            yield made
        made.stop()


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    module_store.mend()


@pytest.fixture
def store_settings(store: Store) -> dict[str, str]:
    return store.settings()


@pytest.fixture
def trainer(make_trainer: MakeTrainer) -> ServiceProcess:
    return make_trainer(EVERSTEP_STORE_PATIENCE_SECONDS="3").start()


@pytest.fixture
def stub(trainer: ServiceProcess, connect: Connect) -> TrainerServiceStub:
    return TrainerServiceStub(connect(trainer))


def kind(message: TrainingProgress) -> str:
    return message.WhichOneof("event") or ""


def until(stream: Iterator[TrainingProgress], wanted: Wanted) -> list[TrainingProgress]:
    """What comes, up to the first that is wanted."""
    heard: list[TrainingProgress] = []
    for message in stream:
        heard.append(message)
        if wanted(message):
            return heard
    raise AssertionError(f"ended with {heard[-1:]}")


def committed(message: TrainingProgress) -> bool:
    return kind(message) == "checkpoint_committed"


def delayed_for(reason: str) -> Wanted:
    return lambda m: kind(m) == "checkpoint_delayed" and m.checkpoint_delayed.reason == reason


def trained_to(step: int) -> Wanted:
    return lambda m: kind(m) == "step_metrics" and m.position.step > step


def stored_after(step: int) -> Wanted:
    return lambda m: committed(m) and m.checkpoint_committed.checkpoint.step > step


def start(stub: TrainerServiceStub, strategy: object) -> Iterator[TrainingProgress]:
    stream: Iterator[TrainingProgress] = stub.StartTraining(
        trainer_pb2.StartTrainingRequest(operation_id=OPERATION, strategy=strategy)
    )
    return stream


def resume(
    stub: TrainerServiceStub, attempt: int, checkpoint: CheckpointReference
) -> Iterator[TrainingProgress]:
    stream: Iterator[TrainingProgress] = stub.ResumeTraining(
        trainer_pb2.ResumeTrainingRequest(
            operation_id=OPERATION, attempt=attempt, strategy=SHORT, checkpoint=checkpoint
        )
    )
    return stream


def cancel(stub: TrainerServiceStub, attempt: int) -> None:
    stub.CancelTraining(
        trainer_pb2.CancelTrainingRequest(operation_id=OPERATION, attempt=attempt), timeout=10
    )


def test_every_trouble_in_turn_is_told_and_outlived(stub: TrainerServiceStub, store: Store) -> None:
    stream = start(stub, LONG)
    until(stream, committed)
    troubles: list[tuple[Callable[[], None], str, str]] = [
        (store.fill, "STORE_FULL", "everstep gc"),
        (store.refuse, "STORE_ACCESS_DENIED", "EVERSTEP_STORE_SECRET_KEY"),
        (lambda: store.link.slow(0.15), "UPLOAD_IN_FLIGHT", ""),
    ]
    for trouble, reason, advice in troubles:
        trouble()
        delayed = until(stream, delayed_for(reason))[-1]
        assert advice in delayed.checkpoint_delayed.message
        step = delayed.position.step
        assert delayed.at_risk.steps_since_checkpoint > 0
        # Training goes on all the while.
        going_on = until(stream, trained_to(step + 300))
        times = [m.time.ToNanoseconds() / 1e9 for m in going_on]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert max(pauses) < LONGEST_PAUSE_SECONDS
        store.mend()
        until(stream, stored_after(step))
    # A full store is not asked over and over.
    assert store.door.refusals <= 20
    cancel(stub, 1)
    rest = list(stream)
    assert kind(rest[-1]) == "cancelled"
    assert rest[-1].cancelled.HasField("checkpoint")
    assert not any(kind(m) in ("training_restarted", "failed") for m in rest)


def test_at_the_end_it_is_waited_for_a_while_and_the_first_error_kept(
    stub: TrainerServiceStub, store: Store
) -> None:
    stream = start(stub, SHORT)
    first = until(stream, committed)[-1].checkpoint_committed.checkpoint
    store.fill()
    until(stream, lambda m: kind(m) == "checkpoint_delayed")
    store.refuse()
    store.door.full = False
    rest = list(stream)
    failed = rest[-1].failed
    assert failed.error.reason == "STORE_FULL", rest[-1]
    assert "then STORE_ACCESS_DENIED" in failed.error.message
    assert failed.checkpoint.step >= first.step
    delayed = [m.checkpoint_delayed.reason for m in rest if kind(m) == "checkpoint_delayed"]
    assert "STORE_ACCESS_DENIED" in delayed

    # A resume waits for it, says so, and goes on once it is mended.
    stream = resume(stub, 2, failed.checkpoint.reference)
    waiting = until(stream, lambda m: kind(m) == "warning")[-1]
    assert waiting.warning.reason == "STORE_ACCESS_DENIED"
    store.mend()
    assert kind(list(stream)[-1]) == "completed"


def test_a_resume_that_waits_is_cancelled_or_given_up(
    stub: TrainerServiceStub, store: Store
) -> None:
    checkpoint = until(start(stub, SHORT), committed)[-1].checkpoint_committed.checkpoint
    store.fill()
    stream = resume(stub, 2, checkpoint.reference)
    until(stream, lambda m: kind(m) == "warning")
    cancel(stub, 2)
    assert kind(list(stream)[-1]) == "cancelled"
    failed = list(resume(stub, 3, checkpoint.reference))[-1].failed
    assert failed.error.reason == "STORE_FULL"
    # At its end as well, a store that is mended in time is no failure.
    store.mend()
    stream = resume(stub, 4, checkpoint.reference)
    until(stream, committed)
    store.fill()
    until(stream, lambda m: m.checkpoint_delayed.trigger == CHECKPOINT_TRIGGER_FINAL)
    store.mend()
    assert kind(list(stream)[-1]) == "completed"
    store.fill()
    # A training that has nothing to lose is told at once.
    request = trainer_pb2.StartTrainingRequest(operation_id="op-new", strategy=SHORT)
    words = list(stub.StartTraining(request))
    assert words[-1].failed.error.reason == "STORE_FULL"
    assert not any(kind(m) == "warning" for m in words)


def test_a_stop_that_can_neither_store_nor_keep_leaves_nothing_half(
    make_trainer: MakeTrainer, connect: Connect, store: Store
) -> None:
    trainer = make_trainer(EVERSTEP_STOP_GRACE_SECONDS="0.5").start()
    stub = TrainerServiceStub(connect(trainer))
    stream = start(stub, LONG)
    until(stream, committed)
    store.fill()
    delayed = until(stream, lambda m: kind(m) == "checkpoint_delayed")[-1]
    with no_room(trainer):
        assert trainer.stop() == 0
    assert not list((Path(trainer.settings["EVERSTEP_STATE_DIR"]) / "spool").iterdir())
    store.mend()
    trainer.start()
    request = trainer_pb2.WatchTrainingRequest(
        operation_id=OPERATION, attempt=1, after_index=delayed.index
    )
    last = list(TrainerServiceStub(connect(trainer)).WatchTraining(request))[-1]
    assert last.failed.error.reason == "TRAINER_RESTARTED"
    assert last.failed.error.restartable


@pytest.mark.skipif(OUTAGE_SECONDS < 60, reason="a store that is away is asked for a minute")
def test_a_store_that_is_away_at_the_end_is_waited_for_a_while(
    stub: TrainerServiceStub, store: Store
) -> None:
    stream = start(stub, SHORT)
    until(stream, committed)
    store.link.refuse()
    failed = list(stream)[-1].failed
    assert failed.error.reason == "STORE_UNAVAILABLE"
    assert failed.error.restartable
    assert failed.checkpoint.step > 0
