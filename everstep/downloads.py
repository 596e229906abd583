"""A checkpoint's part on this machine: downloaded, verified, joined to one file."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from blake3 import blake3
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from checkpoint_store.safetensors_layout import write_merged
from everstep.control.v1.checkpoints_pb2 import BlobDownload
from everstep.errors import EverstepError, Reason

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


def download(
    blobs: Sequence[BlobDownload], target: Path, metadata: Mapping[str, str], console: Console
) -> int:
    """Writes one safetensors file that holds all blobs; returns their bytes.

    Nothing stands at `target` until all is there and verified.

    Raises:
        EverstepError: STORE_UNAVAILABLE; CHECKPOINT_CORRUPT when bytes are not those of the blob.
    """
    total = sum(blob.bytes for blob in blobs)
    columns = (
        TextColumn("downloading"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        buffers = []
        for blob in blobs:
            buffers.append(fetch(blob, lambda count: progress.advance(task, count)))
    write_merged(target, buffers, dict(metadata))
    return total


def fetch(blob: BlobDownload, advance: Callable[[int], None] = lambda _count: None) -> bytearray:
    """One blob's bytes, verified.

    Args:
        advance: Called with the bytes of each part that has come.

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
