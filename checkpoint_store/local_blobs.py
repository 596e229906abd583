"""A store in a folder of this machine, or of a disk that several machines mount."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from checkpoint_store.blobs import (
    PIECE_BYTES,
    BlobInfo,
    BlobStore,
    Take,
    UnfinishedUpload,
    blob_not_found,
    check_key,
    check_prefix,
    check_range,
    is_key,
    store_full,
    wrong_size,
)
from checkpoint_store.digests import Buffer
from everstep.errors import EverstepError, Reason


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return store_full(self.url, error.strerror or "no room")
        return EverstepError(
            Reason.STORE_UNAVAILABLE,
            f"the store folder {self._folder} failed ({error.strerror}); check the disk it is on",
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
        if not is_key(entry.name):
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
