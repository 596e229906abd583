"""A store in memory that takes time, goes away and comes back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from greenlet import GreenletExit

from checkpoint_store.blobs import (
    BlobInfo,
    BlobStore,
    Take,
    UnfinishedUpload,
    blob_not_found,
    check_key,
    check_prefix,
    check_range,
    wrong_size,
)
from checkpoint_store.digests import Buffer
from everstep.errors import EverstepError, Reason
from tests.simulation.loop import PROCESS, SimulatedLoop

#: The clock's zero, for whoever asks for a date.
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
#: Seconds a call is tried before it fails, where the store is away.
PATIENCE_SECONDS: Final = 0.5


@dataclass
class Bucket:
    """What is stored, and how the store is."""

    loop: SimulatedLoop
    draw: random.Random
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    #: Of one call, in seconds.
    slowest: float = 0.004
    away: bool = False


class SimulatedStore(BlobStore):
    """As a process sees the bucket."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self._bucket = bucket

    @property
    def url(self) -> str:
        return "s3://simulated"

    def set_up(self) -> None:
        """A bucket needs none."""

    def check(self) -> None:
        self._ask()

    def pause(self, seconds: float) -> None:
        self._bucket.loop.block(seconds)
        self._see_caller()
        super().pause(0)

    def free_bytes(self) -> int | None:
        return None

    def put(self, key: str, data: Buffer) -> None:
        check_key(key)
        content = bytes(data)
        self._ask()
        self._bucket.objects[key] = (content, self._now())
        # Whoever dies here does not know that it is there.
        self._wait()

    def stat(self, key: str) -> BlobInfo | None:
        self._ask()
        found = self._bucket.objects.get(check_key(key))
        return None if found is None else BlobInfo(key, len(found[0]), found[1])

    def get(self, key: str) -> bytes:
        self._ask()
        found = self._bucket.objects.get(check_key(key))
        if found is None:
            raise blob_not_found(key, self.url)
        return found[0]

    def read_range(self, key: str, take: Take, offset: int, size: int, length: int) -> None:
        check_range(offset, size, length)
        content = self.get(key)
        if len(content) != length:
            raise wrong_size(key, length, len(content))
        take(0, memoryview(content)[offset : offset + size])

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        check_prefix(prefix)
        self._ask()
        yield from [
            BlobInfo(key, len(content), modified)
            for key, (content, modified) in sorted(self._bucket.objects.items())
            if key.startswith(prefix)
        ]

    def delete(self, key: str) -> None:
        self._ask()
        self._bucket.objects.pop(check_key(key), None)
        self._wait()

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        return iter(())

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """There are none."""

    def download_url(self, key: str, expires: timedelta) -> str:
        del expires
        return f"{self.url}/{key}"

    def _now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._bucket.loop.time())

    def _ask(self) -> None:
        """The way there."""
        self._wait()
        if self._bucket.away:
            self._bucket.loop.block(self._bucket.draw.uniform(0, PATIENCE_SECONDS))
            self._see_caller()
            if self._bucket.away:
                raise EverstepError(
                    Reason.STORE_UNAVAILABLE, f"{self.url} does not answer; check the store"
                )

    def _wait(self) -> None:
        self._see_caller()
        self._bucket.loop.block(self._bucket.draw.uniform(0, self._bucket.slowest))
        self._see_caller()

    def _see_caller(self) -> None:
        process = PROCESS.get()
        if process is not None and not process.alive:
            raise GreenletExit
