"""The pipe between a trainer and its training process, and the words that travel on it.

A frame is one byte of kind, four bytes of length (big-endian) and the payload: `J` is a word of
this module as canonical JSON, `P` a serialised TrainingProgress. The descriptors of the two
memory slots travel beside the frame of `Train` (SCM_RIGHTS). Imports neither torch nor gRPC.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field, fields
from typing import Any, Final

from checkpoint_store.digests import canonical_json, parse_canonical_json

HEADER: Final = struct.Struct(">cI")
WORD: Final = b"J"
PROGRESS: Final = b"P"
#: A frame longer than this is not one of ours.
MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
#: Snapshots of one training: one complete while the next is written.
SLOTS: Final = 2
#: The trigger of a snapshot that becomes no checkpoint: a new process goes on from it.
MEMORY: Final = "MEMORY"
#: The exit code of a process that has no memory left for a last word.
OUT_OF_MEMORY_EXIT: Final = 71


@dataclass(frozen=True)
class SlotBlob:
    """One safetensors file inside a slot."""

    #: weights, best_weights, average_weights, optimizer or trace.
    kind: str
    #: Where it begins in the slot, and its length, in bytes.
    offset: int
    length: int


@dataclass(frozen=True)
class SlotContent:
    """A complete snapshot in a slot: its tensors, and the small state beside them."""

    slot: int
    blobs: tuple[SlotBlob, ...]
    #: Counters, history, scheduler, ...: everything of a TrainingResumeContext that is no tensor.
    state: dict[str, Any]


@dataclass(frozen=True)
class Train:
    """Trainer to child: begin. The slots' descriptors travel with this frame."""

    operation_id: str
    attempt: int
    #: A TrainingStrategy as plain dicts, resolved.
    strategy: dict[str, Any]
    #: StrategyOverrides as plain dicts.
    overrides: dict[str, Any]
    data_root: str
    threads: int
    #: Packages whose `package.module:factory` a strategy may name.
    allowed_packages: tuple[str, ...]
    #: Where it is trained: cpu, cuda, cuda:N, or auto.
    device: str = "cpu"
    #: The snapshot to go on from.
    resume: SlotContent | None = None
    #: Slots that the trainer reads: on their way to the store.
    held: tuple[int, ...] = ()
    #: The trigger of the snapshot to go on from, where it still waits for its way to the store.
    waiting: str = ""
    #: The share of the time that snapshots for memory alone may take; 0: none are taken.
    stall_budget: float = 0.0
    #: The environment and the data that the snapshot was made with; empty: not compared.
    fingerprint: dict[str, str] = field(default_factory=dict)
    data_digest: str = ""
    #: The events of the snapshot's lineage, as plain dicts.
    lineage: list[dict[str, Any]] = field(default_factory=list)
    #: A fork: the strategy that the snapshot was made with, and whose it is in one line.
    forked_from: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    #: A checkpoint before the snapshot, from which steps may be run again as a proof.
    replay: SlotContent | None = None


@dataclass(frozen=True)
class Cancel:
    """Trainer to child: stop after this step; with a checkpoint unless discarded."""

    discard: bool = False


@dataclass(frozen=True)
class TakeCheckpoint:
    """Trainer to child: a checkpoint after this step."""


@dataclass(frozen=True)
class Shutdown:
    """Trainer to child: a checkpoint after this step, then end; another trainer goes on."""


@dataclass(frozen=True)
class SlotsReady:
    """Trainer to child: both slots are made, as large as they were wanted."""


@dataclass(frozen=True)
class SnapshotReleased:
    """Trainer to child: the snapshot is stored or given up, its slot is read no more."""

    slot: int


@dataclass(frozen=True)
class Ready:
    """Child to trainer: imports are done, waiting for `Train`."""

    process_id: int


@dataclass(frozen=True)
class Restored:
    """Child to trainer: the resume context is built; its digests by kind."""

    digests: dict[str, str]
    step: int


@dataclass(frozen=True)
class Accepted:
    """Child to trainer: the snapshot may be gone on from here; this is its lineage now."""

    lineage: list[dict[str, Any]]


@dataclass(frozen=True)
class SlotsWanted:
    """Child to trainer: the state is built, before its first step; it waits for `SlotsReady`."""

    #: Of one snapshot, when all of the state is there; and of that, what steps may change.
    length: int
    changing: int


@dataclass(frozen=True)
class SnapshotBegun:
    """Child to trainer: what a slot held is being written over, and is nothing any more."""

    slot: int


@dataclass(frozen=True)
class SnapshotHandedOver:
    """Child to trainer: the complete snapshot that waited is to be made a checkpoint now."""

    slot: int


@dataclass(frozen=True)
class SnapshotTaken:
    """Child to trainer: a slot holds a complete snapshot."""

    content: SlotContent
    #: The name of a CheckpointTrigger without its prefix, as in `PERIODIC`; or MEMORY: it becomes
    #: no checkpoint.
    trigger: str
    #: Whether it is to be made a checkpoint now; otherwise it waits, or is for memory alone.
    handed_over: bool
    epoch: int
    step: int
    metrics: dict[str, float]
    monitor: str
    monitor_value: float | None
    fingerprint: dict[str, str]
    data_digest: str
    lineage: list[dict[str, Any]]
    stall_seconds: float


@dataclass(frozen=True)
class Finished:
    """Child to trainer: the last word of a training that ended by itself.

    `outcome` is completed, cancelled or handed_over. `result` holds the fields of TrainingResult
    that the child knows: epochs, steps, stopped_early, stop_reason, metrics, monitor, best_value,
    best_epoch. The digests are those of the last checkpoint.
    """

    outcome: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Child to trainer: the training ended with an error."""

    reason: str
    message: str
    #: Field and description, in pairs.
    violations: tuple[tuple[str, str], ...] = ()
    detail: str = ""


Word = (
    Train | Cancel | TakeCheckpoint | Shutdown | SlotsReady | SnapshotReleased
    | Ready | Restored | Accepted | SlotsWanted | SnapshotBegun | SnapshotTaken
    | SnapshotHandedOver | Finished | Failed
)  # fmt: skip
_WORDS: Final[dict[str, type[Any]]] = {
    word.__name__: word
    for word in (
        Train, Cancel, TakeCheckpoint, Shutdown, SlotsReady, SnapshotReleased,
        Ready, Restored, Accepted, SlotsWanted, SnapshotBegun, SnapshotTaken,
        SnapshotHandedOver, Finished, Failed,
    )
}  # fmt: skip


def encode_word(word: Word) -> bytes:
    """The frame of a word."""
    payload = canonical_json({"word": type(word).__name__, **_plain(word)})
    return HEADER.pack(WORD, len(payload)) + payload


def encode_progress(serialized: bytes) -> bytes:
    """The frame of a serialised TrainingProgress."""
    return HEADER.pack(PROGRESS, len(serialized)) + serialized


def decode_word(payload: bytes) -> Word:
    """The word in a frame's payload."""
    content = parse_canonical_json(payload)
    word = _WORDS[content.pop("word")]
    if word is Train:
        for name in ("resume", "replay"):
            if content[name] is not None:
                content[name] = _slot_content(content[name])
        for name in ("allowed_packages", "held"):
            content[name] = tuple(content[name])
    if word is SnapshotTaken:
        content["content"] = _slot_content(content["content"])
    if word is Failed:
        content["violations"] = tuple((name, text) for name, text in content["violations"])
    decoded: Word = word(**content)
    return decoded


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a word, one level deep and into slots, as JSON wants them."""
    content = {}
    for member in fields(value):
        item = getattr(value, member.name)
        if isinstance(item, SlotContent):
            item = {
                "slot": item.slot,
                "blobs": [[blob.kind, blob.offset, blob.length] for blob in item.blobs],
                "state": item.state,
            }
        elif isinstance(item, tuple):
            item = list(item)
        content[member.name] = item
    return content


def _slot_content(content: dict[str, Any]) -> SlotContent:
    blobs = tuple(SlotBlob(kind, offset, length) for kind, offset, length in content["blobs"])
    return SlotContent(content["slot"], blobs, content["state"])


class ChildPipe:
    """The child's end: blocking, and safe to send on from several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, word: Word) -> None:
        """Sends a word to the trainer."""
        self._send(encode_word(word))

    def send_progress(self, serialized: bytes) -> None:
        """Sends a serialised TrainingProgress to the trainer."""
        self._send(encode_progress(serialized))

    def receive(self) -> tuple[Word | None, tuple[int, ...]]:
        """The next word and the descriptors beside it; None when the trainer is gone."""
        header, descriptors = self._read_with_descriptors(HEADER.size)
        if header is None:
            return None, ()
        _, length = HEADER.unpack(header)
        if length > MAX_FRAME_BYTES:
            raise ConnectionError(f"a frame of {length} bytes on the trainer's pipe")
        payload, more = self._read_with_descriptors(length)
        if payload is None:
            return None, ()
        return decode_word(payload), (*descriptors, *more)

    def _send(self, frame: bytes) -> None:
        with self._sending:
            self._connection.sendall(frame)

    def _read_with_descriptors(self, length: int) -> tuple[bytes | None, tuple[int, ...]]:
        received = bytearray()
        descriptors: list[int] = []
        while len(received) < length:
            try:
                data, passed, _, _ = socket.recv_fds(
                    self._connection, length - len(received), SLOTS
                )
            except ConnectionResetError:
                return None, ()
            descriptors.extend(passed)
            if not data:
                return None, ()
            received += data
        return bytes(received), tuple(descriptors)
