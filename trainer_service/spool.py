"""Snapshots that a stop could not bring to the store: on disk, until the next start does."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from checkpoint_store.digests import canonical_json, parse_canonical_json
from trainer_service.child.pipe import (
    HEADER,
    Failed,
    Finished,
    SnapshotTaken,
    decode_word,
    encode_word,
)
from trainer_service.uploader import UploadContext

_STATE: Final = "snapshot.json"
_TENSORS: Final = "tensors.bin"


@dataclass(frozen=True)
class SpooledSnapshot:
    """The newest snapshot of an attempt that was stopped while its store was away."""

    context: UploadContext
    snapshot: SnapshotTaken
    #: The training's last word; None when it was stopped before it had one.
    outcome: Finished | Failed | None


class Spool:
    """A folder with one snapshot for each attempt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, spooled: SpooledSnapshot, memory: memoryview) -> None:
        """Keeps a snapshot, whole or not at all.

        Args:
            memory: Of the slot; only what the snapshot's blobs need is kept.

        Raises:
            OSError: When the disk is full or cannot be written.
        """
        target = self._place(spooled.context.operation_id, spooled.context.attempt)
        incoming = self._folder / f".{secrets.token_hex(8)}"
        incoming.mkdir(parents=True)
        try:
            blobs = spooled.snapshot.content.blobs
            length = max((blob.offset + blob.length for blob in blobs), default=0)
            with memory[:length] as tensors:
                _write(incoming / _TENSORS, tensors)
            _write(incoming / _STATE, _encode(spooled))
            _sync(incoming)
            shutil.rmtree(target, ignore_errors=True)
            incoming.rename(target)
            _sync(self._folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def find(self, operation_id: str, attempt: int) -> SpooledSnapshot | None:
        """The snapshot of an attempt; None when there is none, or none that can be read."""
        try:
            return _decode((self._place(operation_id, attempt) / _STATE).read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def tensors(self, operation_id: str, attempt: int) -> Iterator[memoryview]:
        """The bytes that the snapshot's blobs stand in."""
        with (self._place(operation_id, attempt) / _TENSORS).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                yield memoryview(b"")
                return
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as memory,
            ):
                yield memory

    def remove(self, operation_id: str, attempt: int) -> None:
        """Drops an attempt's snapshot; fine when there is none."""
        shutil.rmtree(self._place(operation_id, attempt), ignore_errors=True)

    def keep_only(self, attempts: set[tuple[str, int]]) -> None:
        """Drops what belongs to other attempts, or was cut off while it was written."""
        kept = {self._place(*attempt).name for attempt in attempts}
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _place(self, operation_id: str, attempt: int) -> Path:
        return self._folder / f"{operation_id}.{attempt}"


def _encode(spooled: SpooledSnapshot) -> bytes:
    words = {"snapshot": spooled.snapshot, "outcome": spooled.outcome}
    return canonical_json(
        {
            "context": asdict(spooled.context),
            **{
                name: None if word is None else encode_word(word)[HEADER.size :].decode()
                for name, word in words.items()
            },
        }
    )


def _decode(content: bytes) -> SpooledSnapshot:
    found = parse_canonical_json(content)
    snapshot = decode_word(found["snapshot"].encode())
    outcome = None if found["outcome"] is None else decode_word(found["outcome"].encode())
    if not isinstance(snapshot, SnapshotTaken) or not isinstance(outcome, Finished | Failed | None):
        raise TypeError("no snapshot")
    return SpooledSnapshot(UploadContext(**found["context"]), snapshot, outcome)


def as_shutdown(snapshot: SnapshotTaken) -> SnapshotTaken:
    """A snapshot that was not to become a checkpoint, and now is."""
    if snapshot.trigger in ("CANCELLATION", "FAILURE", "FINAL"):
        return snapshot
    return replace(snapshot, trigger="SHUTDOWN")


def _write(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
