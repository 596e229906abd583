"""Where bytes are kept: the interface of a store, and the store that is a local folder."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shlex
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
    be reached, STORE_ACCESS_DENIED, STORE_MISCONFIGURED, and INVALID_REQUEST for a bad key.
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


def check_key(key: str) -> str:
    """The key, seen to be one.

    Raises:
        EverstepError: INVALID_REQUEST.
    """
    if len(key) > _MAX_KEY_LENGTH or not _KEY.fullmatch(key):
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


class LocalBlobStore(BlobStore):
    """A folder on this machine; an object's key is its path in it.

    An object is written to `.incoming/` first, synced, and moved to its place. `set_up` alone makes
    `.incoming/`, so that a folder without it is known as one whose disk is away.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder.resolve()
        self._incoming = self._folder / ".incoming"

    @property
    def url(self) -> str:
        return self._folder.as_uri()

    def set_up(self) -> None:
        with self._reported():
            self._incoming.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        with self._reported():
            probe = self._incoming / f"check-{secrets.token_hex(8)}"
            probe.write_bytes(b"")
            probe.unlink()

    def free_bytes(self) -> int | None:
        with self._reported():
            self._see_folder()
            return shutil.disk_usage(self._folder).free

    def put(self, key: str, data: Buffer) -> None:
        target = self._path(key)
        temporary = self._incoming / secrets.token_hex(16)
        with self._reported():
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                _make_durable_folder(target.parent, self._folder)
                temporary.replace(target)
                _sync_folder(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def stat(self, key: str) -> BlobInfo | None:
        path = self._path(key)
        with self._reported():
            info = _info(key, path)
            if info is None:
                self._see_folder()
            return info

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._reported():
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._see_folder()
                raise blob_not_found(key, self.url) from None

    def read_range(self, key: str, take: Take, offset: int, size: int, length: int) -> None:
        path = self._path(key)
        check_range(offset, size, length)
        with self._reported(), memoryview(bytearray(min(PIECE_BYTES, size))) as buffer:
            try:
                with path.open("rb", buffering=0) as file:
                    found = os.fstat(file.fileno()).st_size
                    if found != length:
                        raise wrong_size(key, length, found)
                    file.seek(offset)
                    position = 0
                    while position < size:
                        with buffer[: size - position] as rest:
                            count = file.readinto(rest)
                        if not count:
                            raise wrong_size(key, length, offset + position)
                        with buffer[:count] as piece:
                            take(position, piece)
                        position += count
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._see_folder()
                raise blob_not_found(key, self.url) from None

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        check_prefix(prefix)
        folder = self._folder / prefix.rpartition("/")[0]
        with self._reported():
            for path in _files_below(folder):
                key = path.relative_to(self._folder).as_posix()
                info = _info(key, path) if key.startswith(prefix) else None
                if info is not None:
                    yield info
            # After the last one: what was listed is all there is, if the folder is there still.
            self._see_folder()

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._reported():
            try:
                path.unlink()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._see_folder()
                return
            _sync_folder(path.parent)

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        with self._reported():
            for path in self._incoming.iterdir():
                info = _info(path.name, path)
                if info is not None:
                    yield UnfinishedUpload("", path.name, info.size, info.modified)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        path = self._incoming / check_key(upload.upload_id)
        with self._reported():
            try:
                path.unlink()
            except FileNotFoundError:
                self._see_folder()

    def download_url(self, key: str, expires: timedelta) -> str:
        """A file:// URL: it does not expire, and serves on this machine only."""
        del expires
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    def _see_folder(self) -> None:
        """What is not there is missing only if the store is there: its disk may be away."""
        if not self._incoming.is_dir():
            raise EverstepError(
                Reason.STORE_UNAVAILABLE,
                f"there is no store in {self._folder}; check that its disk is mounted and that "
                "EVERSTEP_STORE_URL is right, or make one there with "
                f"mkdir -p {shlex.quote(str(self._incoming))}",
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns the system's errors into ours."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self._see_folder()
            raise self._error(error) from error

    def _error(self, error: OSError) -> EverstepError:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return EverstepError(
                Reason.STORE_ACCESS_DENIED,
                f"the store folder {self._folder} cannot be used ({error.strerror}); give this "
                "user the right to read and write it, or name another in EVERSTEP_STORE_URL",
            )
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            return EverstepError(
                Reason.STORE_MISCONFIGURED,
                f"the store folder {self._folder} is no folder ({error.strerror}); "
                "name one in EVERSTEP_STORE_URL",
            )
        advice = (
            "free some space"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check the disk it is on"
        )
        return EverstepError(
            Reason.STORE_UNAVAILABLE,
            f"the store folder {self._folder} failed ({error.strerror}); {advice}",
        )


def _bad_key(key: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST,
        f"{key[:80]!r} is no key of the store; use letters, digits, '.', '_', '-' between '/'",
    )


def _info(key: str, path: Path) -> BlobInfo | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_file():
        return None
    return BlobInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _files_below(folder: Path) -> Iterator[Path]:
    """Files whose names are keys: what begins with a dot is on its way in, or not ours."""
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if not _KEY.fullmatch(entry.name):
            continue
        if entry.is_dir():
            yield from _files_below(entry)
        else:
            yield entry


def _make_durable_folder(folder: Path, root: Path) -> None:
    """Makes the folder and its parents up to the root; each entry is on disk after."""
    missing = []
    while not folder.is_dir() and folder != root:
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
