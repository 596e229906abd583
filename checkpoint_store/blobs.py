"""Where bytes are kept: the interface of a store, and what all stores say in the same words."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from checkpoint_store.digests import Buffer
from everstep.errors import EverstepError, Reason

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_PREFIX: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)*([A-Za-z0-9][A-Za-z0-9._-]*)?")
_MAX_KEY_LENGTH: Final = 512
#: Of a range, read at a time: small enough to stay in the processor's cache until it is taken.
PIECE_BYTES: Final = 256 * 1024

#: Takes a piece of a range: where it begins in the range, and its bytes, which do not stay.
Take = Callable[[int, memoryview], None]


@dataclass(frozen=True)
class BlobInfo:
    """A stored object."""

    key: str
    #: In bytes.
    size: int
    #: When it was put, by the store's clock; in UTC.
    modified: datetime


@dataclass(frozen=True)
class UnfinishedUpload:
    """An object on its way into the store, or what is left of one whose writer died."""

    #: Empty where the store does not know it.
    key: str
    #: The store's own name for the upload.
    upload_id: str
    #: What has arrived, in bytes.
    size: int
    #: When its newest part came, or it began; by the store's clock, in UTC.
    modified: datetime


class BlobStore(ABC):
    """Objects by key. Every method blocks and may be called from any thread.

    Keys are segments of letters, digits, `.`, `_` and `-`, joined by `/`; a segment begins with a
    letter or a digit. Every method raises EverstepError: STORE_UNAVAILABLE when the store cannot
    be reached, STORE_FULL, STORE_ACCESS_DENIED, STORE_MISCONFIGURED, and INVALID_REQUEST for a bad
    key.
    """

    def __init__(self) -> None:
        self._given_up = threading.Event()

    @property
    @abstractmethod
    def url(self) -> str:
        """What `open_blob_store` takes for this store; holds no credentials."""

    @abstractmethod
    def set_up(self) -> None:
        """Makes a store of a folder that holds none; to be called where none is remembered.

        A folder without its store is otherwise one whose disk is away: an empty mount point. A
        bucket needs no set-up.
        """

    @abstractmethod
    def check(self) -> None:
        """Sees that the store answers and accepts the credentials; makes a missing bucket."""

    def give_up(self) -> None:
        """Calls that are tried again, now or later, end with their next failure; pauses end."""
        self._given_up.set()

    def pause(self, seconds: float) -> None:
        """Waits between two looks at the store.

        Raises:
            EverstepError: STORE_UNAVAILABLE, at once when the store is given up.
        """
        if self._given_up.wait(seconds):
            raise EverstepError(
                Reason.STORE_UNAVAILABLE,
                f"waiting for {self.url} was given up; try again",
            )

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Room for more objects; None where the store does not say."""

    @abstractmethod
    def put(self, key: str, data: Buffer) -> None:
        """Stores bytes under a key, whole or not at all; replaces what was there."""

    @abstractmethod
    def stat(self, key: str) -> BlobInfo | None:
        """Size and age of an object; None when there is none."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """A small object's bytes.

        Raises:
            EverstepError: BLOB_NOT_FOUND.
        """

    @abstractmethod
    def read_range(self, key: str, take: Take, offset: int, size: int, length: int) -> None:
        """Reads a range of an object, piece by piece.

        Args:
            key: Of the object.
            take: Called with the pieces in their order; after a try that broke, from the range's
                beginning again.
            offset: Where the range begins in the object.
            size: Of the range; 0 only where the object is empty.
            length: What the whole object has to have.

        Raises:
            EverstepError: BLOB_NOT_FOUND; CHECKPOINT_CORRUPT when it has another length.
            ValueError: When the range is not inside such an object.
        """

    def read_into(
        self, key: str, target: memoryview, offset: int = 0, length: int | None = None
    ) -> None:
        """Reads an object, or a range of it, into memory; see `read_range`.

        Args:
            key: Of the object.
            target: Filled; as long as the range.
            offset: Where the range begins in the object.
            length: What the whole object has to have; None: as much as the target.
        """

        def take(position: int, piece: memoryview) -> None:
            target[position : position + len(piece)] = piece

        length = len(target) if length is None else length
        self.read_range(key, take, offset, len(target), length)

    @abstractmethod
    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """The objects whose keys begin with a text, in no promised order."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes an object; fine when there is none."""

    @abstractmethod
    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        """Every upload that was begun and not ended, whoever began it."""

    @abstractmethod
    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Removes what has arrived of an upload; fine when it has ended."""

    @abstractmethod
    def download_url(self, key: str, expires: timedelta) -> str:
        """A URL that gives the object's bytes to whoever holds it, for a while."""


def is_key(text: str) -> bool:
    """Whether an object may have this name."""
    return len(text) <= _MAX_KEY_LENGTH and _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """The key, seen to be one.

    Raises:
        EverstepError: INVALID_REQUEST.
    """
    if not is_key(key):
        raise _bad_key(key)
    return key


def check_prefix(prefix: str) -> str:
    """The prefix, seen to be the beginning of a key.

    Raises:
        EverstepError: INVALID_REQUEST.
    """
    if len(prefix) > _MAX_KEY_LENGTH or not _PREFIX.fullmatch(prefix):
        raise _bad_key(prefix)
    return prefix


def blob_not_found(key: str, url: str) -> EverstepError:
    """BLOB_NOT_FOUND, in the words that every store uses."""
    return EverstepError(
        Reason.BLOB_NOT_FOUND,
        f"there is no {key} in {url}; use another checkpoint",
        metadata={"key": key},
    )


def store_full(url: str, detail: str) -> EverstepError:
    """STORE_FULL, in the words that every store uses."""
    return EverstepError(
        Reason.STORE_FULL,
        f"the store {url} has no room ({detail}); delete checkpoints that are not needed and run "
        "everstep gc, or give it more room",
    )


def check_range(offset: int, size: int, length: int) -> None:
    """Sees that a range is inside an object of a length.

    Raises:
        ValueError: When it is not.
    """
    end = offset + size
    if not 0 <= offset <= end <= length or (offset == end and length):
        raise ValueError(f"{size} bytes at {offset} are not inside {length} bytes")


def wrong_size(key: str, expected: int, found: int) -> EverstepError:
    """CHECKPOINT_CORRUPT for an object of another length than it should have."""
    return EverstepError(
        Reason.CHECKPOINT_CORRUPT,
        f"{key} has {found} bytes in the store, not {expected}; use another checkpoint",
        metadata={"key": key},
    )


def _bad_key(key: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST,
        f"{key[:80]!r} is no key of the store; use letters, digits, '.', '_', '-' between '/'",
    )
