"""A checkpoint's part on this machine: downloaded, verified, joined to one file."""

from __future__ import annotations

import asyncio
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from checkpoint_store.safetensors_layout import write_merged
from everstep.control.v1.checkpoints_pb2 import BlobDownload
from everstep.control.v1.operations_pb2 import Operation
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60

#: Called with the bytes of each part that has come.
Advance = Callable[[int], None]


def not_told(_count: int) -> None:
    """For a download whose progress interests nobody."""


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuses a place where the file cannot stand.

    Raises:
        EverstepError: INVALID_REQUEST.
    """
    if target.exists() and not overwrite:
        raise EverstepError(
            Reason.INVALID_REQUEST,
            f"{target} is there already; overwrite it (--force) or name another",
        )
    if not target.parent.is_dir():
        raise EverstepError(Reason.INVALID_REQUEST, f"there is no folder {target.parent}")


def newest_checkpoint(operation: Operation) -> str:
    """The id of the checkpoint that is downloaded when none is named.

    Raises:
        EverstepError: NO_CHECKPOINT.
    """
    newest = operation.latest_checkpoint.reference.checkpoint_id
    if not newest:
        raise EverstepError(
            Reason.NO_CHECKPOINT, f"{operation.operation_id} has no checkpoint yet; wait for one"
        )
    return newest


def download(
    blobs: Sequence[BlobDownload],
    checkpoint: Checkpoint,
    target: Path,
    advance: Advance = not_told,
) -> int:
    """Writes one safetensors file that holds all blobs of a part; returns their bytes.

    Nothing stands at `target` until all is there and verified. The file's metadata name the
    checkpoint.

    Raises:
        EverstepError: STORE_UNAVAILABLE; CHECKPOINT_CORRUPT when bytes are not those of the blob.
    """
    metadata = {
        "everstep.operation": checkpoint.operation_id,
        "everstep.checkpoint": checkpoint.reference.checkpoint_id,
        "everstep.step": str(checkpoint.step),
        "everstep.state_digest": checkpoint.digests["state"],
        "everstep.lineage": checkpoint.lineage,
    }
    write_merged(target, [fetch(blob, advance) for blob in blobs], metadata)
    return sum(blob.bytes for blob in blobs)


async def download_in_thread(
    blobs: Sequence[BlobDownload], checkpoint: Checkpoint, target: Path
) -> int:
    """As `download`, beside the event loop; a task that is cancelled in it ends it."""
    stopped = threading.Event()

    def advance(_count: int) -> None:
        if stopped.is_set():
            raise _Stopped

    try:
        return await asyncio.to_thread(download, blobs, checkpoint, target, advance)
    finally:
        stopped.set()


class _Stopped(Exception):
    """Nobody waits for the download any more."""


def fetch(blob: BlobDownload, advance: Advance = not_told) -> bytearray:
    """One blob's bytes, verified.

    Raises:
        EverstepError: STORE_UNAVAILABLE, CHECKPOINT_CORRUPT.
    """
    received = bytearray()
    try:
        with urllib.request.urlopen(blob.url, timeout=_TIMEOUT_SECONDS) as response:
            while chunk := response.read(_CHUNK_BYTES):
                received += chunk
                advance(len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise EverstepError(
            Reason.STORE_UNAVAILABLE,
            f"the object store does not give a blob: {error}; is {blob.url.partition('?')[0]} "
            "reachable from here?",
        ) from None
    if len(received) != blob.bytes or blake3(received).hexdigest() != blob.digest:
        raise EverstepError(
            Reason.CHECKPOINT_CORRUPT,
            f"blob {blob.digest[:16]} holds other bytes than were written; verify the checkpoint, "
            "or pull another one with --checkpoint",
        )
    return received
