"""The store's own time: the only one that ages in the store are told by."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from checkpoint_store.blobs import BlobInfo, BlobStore
from everstep.errors import EverstepError, Reason

#: An object that is put to learn the store's time.
CLOCK: Final = "clock"


def store_time(store: BlobStore) -> datetime:
    """What the store's clock says, to the second."""
    store.put(CLOCK, b"")
    info = store.stat(CLOCK)
    if info is None:
        raise EverstepError(
            Reason.STORE_MISCONFIGURED,
            f"{store.url} does not show what was put a moment ago; check the store",
        )
    return info.modified


def age_at(now: datetime, info: BlobInfo) -> float:
    """Seconds since an object was put; both by the store's clock."""
    return (now - info.modified).total_seconds()
