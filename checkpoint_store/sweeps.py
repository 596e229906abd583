"""Sweeps, announced in the store: no upload relies on a blob that is being removed.

A collector looks at a blob's age and then removes it; S3 has no call that does both. So it
announces itself before it looks. An upload that brought a blob anew which was old before waits
for the sweeps that are announced, and then sees whether the blob is still there. Either the
collector saw the new blob, or the upload sees the sweep.

Nobody's clock is compared with another's: ages in the store are differences of the store's times.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from checkpoint_store.blobs import BlobInfo, BlobStore
from checkpoint_store.store_clock import age_at, store_time

SWEEPS: Final = "sweeps/"
#: A new announcement takes the place of one this old, so that nobody waits for a whole collection.
RENEWED_SECONDS: Final = 2.0
#: No removal begins under an announcement older than this.
HELD_SECONDS: Final = 10.0
#: How long a collector's calls to the store are tried again.
RETRY_SECONDS: Final = 5.0
#: The announcement of a collector that died counts no longer than this. By then the last removal
#: was begun half of it ago, and the store has done it or never will.
STALE_SECONDS: Final = 2 * (HELD_SECONDS + RETRY_SECONDS)
_PAUSE_SECONDS: Final = 0.1


class AnnouncedSweep:
    """Stands in the store while objects are removed; a context manager.

    Args:
        store: Its calls must not be tried again for longer than RETRY_SECONDS.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._key = ""
        self._began = 0.0
        self._is_removing = False

    def __enter__(self) -> AnnouncedSweep:
        self._announce()
        return self

    def remove_if(self, key: str, is_garbage: Callable[[BlobInfo], bool]) -> bool:
        """Removes an object if what the store says of it is that of garbage; whether it did."""
        looked_long = True
        while looked_long:
            if self._age() > RENEWED_SECONDS:
                self._store.delete(self._key)
                self._announce()
            info = self._store.stat(key)
            if info is None or not is_garbage(info):
                return False
            looked_long = self._age() > HELD_SECONDS
        self._is_removing = True
        self._store.delete(key)
        self._is_removing = False
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A removal that failed may still be under way in the store: uploads wait until it is stale.
        if not self._is_removing:
            self._store.delete(self._key)

    def _announce(self) -> None:
        self._key = SWEEPS + secrets.token_hex(16)
        self._began = time.monotonic()
        self._store.put(self._key, b"")

    def _age(self) -> float:
        return time.monotonic() - self._began


def await_sweeps(store: BlobStore) -> None:
    """Returns when each sweep that is announced now is over, or its collector is.

    Raises:
        EverstepError: STORE_UNAVAILABLE, also when the store is given up meanwhile.
    """
    announced = list(store.list(SWEEPS))
    if not announced:
        return
    now, began = store_time(store), time.monotonic()
    for info in announced:
        counts_until = began + STALE_SECONDS - age_at(now, info)
        while time.monotonic() < counts_until and store.stat(info.key) is not None:
            store.pause(_PAUSE_SECONDS)


def remove_stale_sweeps(store: BlobStore) -> None:
    """Removes the announcements of collectors that died."""
    announced = list(store.list(SWEEPS))
    now = store_time(store) if announced else None
    for info in announced:
        if now is not None and age_at(now, info) > STALE_SECONDS:
            store.delete(info.key)
