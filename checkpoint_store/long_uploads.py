"""Uploads that take long, announced in the store: what they brought is spared until they end.

Garbage collection removes what nothing names and is older than its grace, an hour. An upload names
its blobs in its last word alone, so one that takes longer might lose the first of them. It
announces itself in time, and a collection that begins later spares what was put since an hour
before that; one that began earlier finds all of it too young.
"""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final

from checkpoint_store.blobs import BlobStore
from checkpoint_store.store_clock import age_at, store_time
from everstep.errors import EverstepError, Reason

UPLOADS: Final = "uploads/"
#: A stored blob older than this is relied on only if the parent checkpoint, which is kept
#: meanwhile, names it too.
REUSE_SECONDS: Final = 900
#: An upload that takes longer announces itself,
LONG_SECONDS: Final = 900
#: and fails when it could not until now.
LATEST_SECONDS: Final = 2700
#: Before an announcement: all that such an upload brought or relied on is younger.
SPARED: Final = timedelta(seconds=REUSE_SECONDS + LATEST_SECONDS)
#: An announcement counts no longer than this: its trainer died, or its upload fails.
COUNTED_SECONDS: Final = 24 * 3600


class UploadTime:
    """How long an upload takes; a context manager around all of it."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._began = time.monotonic()
        self._announcing = threading.Lock()
        self._key = ""
        self._ended = False
        # One blob may take long, too.
        self._timer = threading.Timer(LONG_SECONDS, self._announce_in_time)
        self._timer.daemon = True

    def __enter__(self) -> UploadTime:
        self._timer.start()
        return self

    def check(self) -> None:
        """To be called before each blob and before the manifest, from any thread.

        Raises:
            EverstepError: STORE_UNAVAILABLE, when what was brought may be gone.
        """
        with self._announcing:
            passed = time.monotonic() - self._began
            if passed > (COUNTED_SECONDS if self._key else LATEST_SECONDS):
                raise EverstepError(
                    Reason.STORE_UNAVAILABLE,
                    f"a checkpoint was on its way to {self._store.url} for too long "
                    f"({passed / 60:.0f} minutes); what was brought first may have been removed",
                )
            if passed > LONG_SECONDS and not self._key:
                self._announce()

    def _announce_in_time(self) -> None:
        # What fails here is tried again before the next blob.
        with self._announcing, suppress(EverstepError):
            if not self._key and not self._ended:
                self._announce()

    def _announce(self) -> None:
        key = UPLOADS + secrets.token_hex(16)
        self._store.put(key, b"")
        self._key = key

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        # A policy may forbid a trainer to delete: collecting garbage removes it then.
        with self._announcing, suppress(EverstepError):
            self._ended = True
            if self._key:
                self._store.delete(self._key)


def spared_since(store: BlobStore) -> datetime | None:
    """From when on what was put may belong to a long upload, by the store's clock; None: no one."""
    announced = list(store.list(UPLOADS))
    if not announced:
        return None
    now = store_time(store)
    counted = [info.modified for info in announced if age_at(now, info) <= COUNTED_SECONDS]
    return min(counted) - SPARED if counted else None


def remove_old_announcements(store: BlobStore) -> None:
    """Removes the announcements of uploads that ended without doing so."""
    announced = list(store.list(UPLOADS))
    now = store_time(store) if announced else None
    for info in announced:
        if now is not None and age_at(now, info) > COUNTED_SECONDS:
            store.delete(info.key)
