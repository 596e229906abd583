"""Watchers, the control plane and the trainer are killed at random; every list equals the log."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from checkpoint_store import open_blob_store
from checkpoint_store.checkpoints import read_manifest
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    OperationEvent,
    WatchOperationRequest,
)
from everstep.control.v1.operations_pb2_grpc import OperationServiceStub
from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.services.conftest import ACCESS_KEY, SECRET_KEY, Settings
from tests.services.processes import PATIENCE_SECONDS, ServiceProcess, wait_for
from tests.services.stack import FINAL_STATES, Stack
from tests.services.strategies import digits

SEED = int(os.environ.get("EVERSTEP_TEST_SEED", "3"))
EPOCHS = 10
#: Who is killed, in an order that is drawn.
VICTIMS = ("watcher", "control plane", "trainer", "both", "watcher", "control plane", "watcher")


class Watcher(threading.Thread):
    """Watches from the beginning; what breaks is opened again after the last durable event."""

    def __init__(self, stub: OperationServiceStub, operation_id: str) -> None:
        super().__init__(daemon=True)
        self.durable: list[OperationEvent] = []
        self.fractions: list[float] = []
        #: The statuses that streams broke with.
        self.breaks: set[str] = set()
        self._stub = stub
        self._operation_id = operation_id
        self._stream: grpc.CallIterator[object] | None = None
        self._ended = False
        self.start()

    def cut_off(self) -> None:
        """Its stream is gone, in the middle of whatever is on its way."""
        if self._stream is not None:
            self._stream.cancel()

    def run(self) -> None:
        while not self._ended:
            after = self.durable[-1].sequence if self.durable else 0
            request = WatchOperationRequest(operation_id=self._operation_id, after_sequence=after)
            stream = self._stub.WatchOperation(request, wait_for_ready=True)
            self._stream = stream
            try:
                for response in stream:
                    for event in response.batch.events:
                        self._take(event)
            except grpc.RpcError as failure:
                self.breaks.add(failure.code().name)  # type: ignore[attr-defined]

    def _take(self, event: OperationEvent) -> None:
        if event.HasField("progress"):
            self.fractions.append(event.progress.position.fraction)
        if event.sequence:
            self.durable.append(event)
            self._ended = event.state_changed.to in FINAL_STATES


@pytest.fixture
def stack(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
) -> Iterator[Stack]:
    """As everywhere, with a process ready for the next attempt."""
    control_plane = make_control_plane().start()
    trainer = make_trainer(
        EVERSTEP_CONTROL_PLANE=control_plane.address, EVERSTEP_SPARE_CHILDREN="1"
    ).start()
    yield Stack(control_plane, trainer, connect)
    trainer.kill()


def journal(folder: Path) -> dict[tuple[int, int], bytes]:
    """What the trainer's journal holds, by attempt and index; the trainer is dead."""
    with sqlite3.connect(folder / "journal.db") as connection:
        rows = connection.execute("SELECT attempt, event_index, payload FROM events").fetchall()
    connection.close()
    return {(attempt, index): payload for attempt, index, payload in rows}


def exact(message: OperationEvent | TrainingProgress) -> bytes:
    return message.SerializeToString(deterministic=True)


def test_every_watcher_has_the_log(
    stack: Stack,
    connect: Callable[[ServiceProcess], grpc.Channel],
    store_settings: Settings,
    tmp_path: Path,
) -> None:
    chance = random.Random(SEED)
    policy = {"max_attempts": 20, "backoff_seconds": 0.0}
    operation_id = stack.create(digits(epochs=EPOCHS), restart_policy=policy)
    watchers = [
        Watcher(OperationServiceStub(connect(stack.control_plane)), operation_id) for _ in range(3)
    ]
    journaled: dict[tuple[int, int], bytes] = {}
    victims = list(VICTIMS)
    chance.shuffle(victims)
    for victim in victims:
        watched = chance.choice(watchers)
        come = len(watched.durable) + chance.randint(1, 5)
        wait_for(lambda w=watched, n=come: len(w.durable) >= n or not w.is_alive(), "more events")
        if victim == "watcher":
            watched.cut_off()
        if victim in ("control plane", "both"):
            stack.control_plane.kill()
        if victim in ("trainer", "both"):
            stack.trainer.kill()
            journaled |= journal(tmp_path / "trainer-1")
            stack.trainer.launch()
        if victim in ("control plane", "both"):
            stack.control_plane.start()
    for watcher in watchers:
        watcher.join(PATIENCE_SECONDS)
        assert not watcher.is_alive()

    operation = stack.finished(operation_id)
    assert operation.state == OPERATION_STATE_COMPLETED, operation
    log = stack.watch(operation_id)
    assert [event.sequence for event in log] == list(range(1, operation.last_sequence + 1))
    for watcher in watchers:
        assert [exact(event) for event in watcher.durable] == [exact(event) for event in log]
        assert all(earlier <= later for earlier, later in pairwise(watcher.fractions))
        assert watcher.breaks <= {"UNAVAILABLE", "CANCELLED"}
    assert any(watcher.breaks for watcher in watchers)

    # What the trainer said is what stands in the log, but for how far the whole is.
    said = {(e.progress.attempt, e.progress.index): e.progress for e in log if e.progress.index}
    assert len(journaled) > 0
    for key in journaled.keys() & said.keys():
        word = TrainingProgress.FromString(journaled[key])
        word.position.fraction = said[key].position.fraction
        assert exact(word) == exact(said[key])
    for attempt in operation.attempts:
        indexes = [index for number, index in said if number == attempt.number]
        assert indexes == list(range(1, len(indexes) + 1))

    # Whatever was trained twice, the history has each epoch once.
    assert len(operation.attempts) >= 3
    store = open_blob_store(store_settings["EVERSTEP_STORE_URL"], ACCESS_KEY, SECRET_KEY)
    manifest = read_manifest(store, operation.result.checkpoint.reference.manifest_key)
    assert [record["epoch"] for record in manifest.state["history"]] == list(range(EPOCHS))
    assert operation.result.epochs == EPOCHS
