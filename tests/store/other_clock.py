"""A store that has another time than we."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from checkpoint_store.blobs import BlobInfo
from checkpoint_store.local_blobs import LocalBlobStore
from checkpoint_store.sweeps import SWEEPS


class OtherClockStore(LocalBlobStore):
    """A folder whose clock is not this machine's; the looks at announcements are counted."""

    def __init__(self, folder: Path, skew: timedelta = timedelta(0)) -> None:
        super().__init__(folder)
        self._skew = skew
        self.looks = 0

    def stat(self, key: str) -> BlobInfo | None:
        self.looks += key.startswith(SWEEPS)
        info = super().stat(key)
        return None if info is None else self._skewed(info)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        return map(self._skewed, super().list(prefix))

    def _skewed(self, info: BlobInfo) -> BlobInfo:
        return dataclasses.replace(info, modified=info.modified + self._skew)
