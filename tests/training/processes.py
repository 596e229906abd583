"""A real training process, with a test in the trainer's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_store import open_blob_store
from checkpoint_store.checkpoints import (
    CheckpointDraft,
    CommittedCheckpoint,
    commit_checkpoint,
)
from everstep.strategy import strategy_content, strategy_digest
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from trainer_service.child.pipe import (
    HEADER,
    PROGRESS,
    Failed,
    Finished,
    Ready,
    Restored,
    SlotContent,
    SlotsReady,
    SlotsWanted,
    SnapshotBegun,
    SnapshotReleased,
    SnapshotTaken,
    Train,
    Word,
    decode_word,
    encode_word,
)
from trainer_service.restorer import restore
from trainer_service.slots import MemorySlots

#: Longer than anything here takes; a test that waits so long has failed.
PATIENCE_SECONDS = 60.0

Said = Word | TrainingProgress
StartProcess = Callable[..., "TrainingProcess"]


@dataclass
class TrainingProcess:
    """One training process.

    Args:
        module: What is run; the product's own, or one that dies at a named point.
    """

    slots: MemorySlots
    module: str = "trainer_service.child"
    arguments: Sequence[str] = ()
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(PATIENCE_SECONDS)
        with child_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(child_end.fileno()), *self.arguments],
                pass_fds=(child_end.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def train(
        self,
        strategy: TrainingStrategy,
        resume: SlotContent | None = None,
        **changes: Any,
    ) -> None:
        """Says `Train`, with the slots."""
        word = Train(
            operation_id="op-1",
            attempt=1,
            strategy=strategy_content(strategy),
            overrides=changes.pop("overrides", {}),
            data_root=changes.pop("data_root", "nowhere"),
            threads=1,
            allowed_packages=changes.pop("allowed_packages", ()),
            resume=resume,
            **changes,
        )
        frame = encode_word(word)
        sent = socket.send_fds(self.connection, [frame[:5]], self.slots.descriptors)
        self.connection.sendall(frame[sent:])

    def say(self, word: Word) -> None:
        self.connection.sendall(encode_word(word))

    def listen(self, release: bool = True, reserve: bool = True) -> Iterator[Said]:
        """What the process says, until it is gone; a trainer's bookkeeping is done meanwhile.

        Args:
            release: Whether a snapshot's slot is released as soon as it is handed over.
            reserve: Whether the slots are made that it waits for before its first step.
        """
        while (said := self._receive()) is not None:
            self.said.append(said)
            if isinstance(said, SlotsWanted) and reserve:
                self.slots.reserve(said.length)
                self.say(SlotsReady())
            if isinstance(said, SnapshotBegun):
                self.slots.begun(said.slot)
            if isinstance(said, SnapshotTaken):
                self.slots.completed(said.content)
                if release and said.handed_over:
                    self.release(said)
            yield said

    def release(self, snapshot: SnapshotTaken) -> None:
        """Says that the snapshot is stored; a process that is gone does not mind."""
        try:
            self.say(SnapshotReleased(snapshot.content.slot))
        except (BrokenPipeError, ConnectionResetError):
            return

    def run(self) -> Finished | Failed | None:
        """Listens to the end; the last word, None where there was none."""
        for _ in self.listen():
            continue
        self.exit_code()
        last = self.said[-1] if self.said else None
        return last if isinstance(last, Finished | Failed) else None

    def until_snapshot(self, step: int, release: bool = True) -> SnapshotTaken:
        """Listens until a snapshot of that step or a later one."""
        for said in self.listen(release):
            if isinstance(said, SnapshotTaken) and said.step >= step:
                return said
        raise AssertionError(f"the process ended before step {step}: {self.said[-1:]}")

    def kill(self) -> None:
        """SIGKILL; what it had said until then is heard."""
        self.process.kill()
        for _ in self.listen():
            continue
        self.exit_code()

    def exit_code(self) -> int:
        """Waits for the process's end."""
        code = self.process.wait(PATIENCE_SECONDS)
        self.connection.close()
        return code

    @property
    def snapshots(self) -> list[SnapshotTaken]:
        return [said for said in self.said if isinstance(said, SnapshotTaken)]

    @property
    def restored(self) -> Restored:
        (word,) = [said for said in self.said if isinstance(said, Restored)]
        return word

    @property
    def events(self) -> list[TrainingProgress]:
        return [said for said in self.said if isinstance(said, TrainingProgress)]

    def _receive(self) -> Said | None:
        while True:
            header = self._read(HEADER.size)
            if header is None:
                return None
            kind, length = HEADER.unpack(header)
            payload = self._read(length)
            if payload is None:
                return None
            if kind == PROGRESS:
                return TrainingProgress.FromString(payload)
            word = decode_word(payload)
            if not isinstance(word, Ready):
                return word

    def _read(self, length: int) -> bytes | None:
        received = bytearray()
        while len(received) < length:
            try:
                data = self.connection.recv(length - len(received))
            except ConnectionResetError:
                return None
            if not data:
                return None
            received += data
        return bytes(received)


def digests(
    folder: Path, slots: MemorySlots, content: SlotContent, strategy: TrainingStrategy
) -> dict[str, str]:
    """The digests that a checkpoint of a slot gets."""
    return dict(commit(folder, slots, content, strategy).manifest.digests)


def through_the_store(
    folder: Path, slots: MemorySlots, strategy: TrainingStrategy
) -> tuple[MemorySlots, SlotContent]:
    """The newest snapshot as another trainer finds it: stored, and read back into new slots."""
    assert slots.newest is not None
    committed = commit(folder, slots, slots.newest, strategy)
    reference = CheckpointReference(
        checkpoint_id=committed.manifest.checkpoint_id,
        manifest_key=committed.manifest_key,
        manifest_digest=committed.manifest_digest,
    )
    elsewhere = MemorySlots()
    return elsewhere, restore(open_blob_store(folder.as_uri()), reference, elsewhere).content


def commit(
    folder: Path, slots: MemorySlots, content: SlotContent, strategy: TrainingStrategy
) -> CommittedCheckpoint:
    """Makes a checkpoint of a slot, in a store in `folder`."""
    draft = CheckpointDraft(
        checkpoint_id=f"ck-{os.urandom(4).hex()}",
        operation_id="op-1",
        attempt=1,
        epoch=int(content.state["epoch"]),
        step=int(content.state["step"]),
        trigger="PERIODIC",
        create_time="2026-01-01T00:00:00.000+00:00",
        parent=None,
        blobs=tuple((blob.kind, blob.offset, blob.length) for blob in content.blobs),
        state=content.state,
        metrics={},
        monitor="val_loss",
        monitor_value=None,
        strategy=strategy_content(strategy),
        strategy_digest=strategy_digest(strategy),
        data_digest="0" * 64,
        fingerprint={},
    )
    store = open_blob_store(folder.as_uri())
    store.set_up()
    with slots.view(content.slot) as memory:
        return commit_checkpoint(store, draft, memory)
