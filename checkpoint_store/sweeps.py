"""Sweeps, announced in the store: no upload relies on a blob that is being removed.

A collector looks at a blob's age and then removes it; S3 has no call that does both. So it
announces itself before it looks. An upload that brought a blob anew which was old before waits
for the sweeps that are announced, and then sees whether the blob is still there. Either the
collector saw the new blob, or the upload sees the sweep.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

from checkpoint_store.blobs import BlobStore

SWEEPS: Final = "sweeps/"
#: A new announcement takes the place of one this old, so that nobody waits for a whole collection.
RENEWED_SECONDS: Final = 2.0
#: The announcement of a collector that died counts no longer than this; longer than one lives
#: whose calls to the store are tried again and again.
STALE_SECONDS: Final = 300
_PAUSE_SECONDS: Final = 0.1


class AnnouncedSweep:
    """Stands in the store while blobs are removed; a context manager."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._key = ""
        self._began = 0.0

    def __enter__(self) -> AnnouncedSweep:
        self._announce()
        return self

    def renew(self) -> None:
        """To be called between any two blobs."""
        if time.monotonic() - self._began > RENEWED_SECONDS:
            self._store.delete(self._key)
            self._announce()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._store.delete(self._key)

    def _announce(self) -> None:
        self._key = SWEEPS + secrets.token_hex(16)
        self._began = time.monotonic()
        self._store.put(self._key, b"")


def await_sweeps(store: BlobStore) -> None:
    """Returns when each sweep that is announced now is over, or its collector is."""
    for info in store.list(SWEEPS):
        while not is_stale(info.modified) and store.stat(info.key) is not None:
            time.sleep(_PAUSE_SECONDS)


def remove_stale_sweeps(store: BlobStore) -> None:
    """Removes the announcements of collectors that died."""
    for info in list(store.list(SWEEPS)):
        if is_stale(info.modified):
            store.delete(info.key)


def is_stale(announced: datetime) -> bool:
    """Whether an announcement is so old that its collector must have died."""
    return (datetime.now(UTC) - announced).total_seconds() > STALE_SECONDS
