"""The store that is a bucket of MinIO, or of any other server that speaks S3."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import BinaryIO, Final, TypeVar, cast
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio.error import MinioException, S3Error
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_before_delay,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from urllib3.exceptions import HTTPError, IncompleteRead

from checkpoint_store import DEFAULT_RETRY_SECONDS
from checkpoint_store.blobs import (
    PIECE_BYTES,
    BlobInfo,
    BlobStore,
    Take,
    UnfinishedUpload,
    check_key,
    check_prefix,
    check_range,
    wrong_size,
)
from checkpoint_store.digests import Buffer
from checkpoint_store.minio_client import MinioClient
from checkpoint_store.minio_uploads import abort_upload, uploaded_parts, uploads_page, utc
from checkpoint_store.s3_errors import (
    NO_OBJECT,
    IncompletePutError,
    may_get_better,
    store_error,
)
from checkpoint_store.sending import POOLS
from everstep.errors import EverstepError, Reason

Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS: Final = 5.0
#: Without a byte from the server.
READ_TIMEOUT_SECONDS: Final = 60.0
#: Up to here an object is one PUT: atomic, sent from where it stands, and nothing is left over when
#: it is cut off. S3 takes five times as much.
SINGLE_PUT_BYTES: Final = 1024 * 1024 * 1024
#: The parts of a larger object; one at a time is copied.
PART_BYTES: Final = 64 * 1024 * 1024
#: Objects in one answer to a listing.
_PAGE_OBJECTS: Final = 1000
_CONNECTIONS: Final = 16
_CALL_ERRORS: Final = (
    MinioException, HTTPError, OSError, ValueError, IncompletePutError, ParseError,
)  # fmt: skip


class MinioBlobStore(BlobStore):
    """A bucket, over the `minio` client; retried here, and nowhere below.

    Retried is what may go better: broken connections, time-outs, 5xx, SlowDown.

    Args:
        endpoint: host:port.
        bucket: `check` makes it when it is missing.
        access_key: Empty: no credentials are sent.
        secret_key: Beside the access key.
        secure: https instead of http.
        region: As the bucket's.
        retry_seconds: No new try begins this long after the first; 0: one try.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str = "",
        secret_key: str = "",
        *,
        secure: bool = False,
        region: str = "us-east-1",
        retry_seconds: float = DEFAULT_RETRY_SECONDS,
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._bucket = bucket
        self._url = f"s3+{'https' if secure else 'http'}://{endpoint}/{bucket}"
        self._retry_seconds = retry_seconds
        pool = urllib3.PoolManager(
            num_pools=2,
            maxsize=_CONNECTIONS,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
            retries=urllib3.Retry(total=False),
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        pool.pool_classes_by_scheme = POOLS
        try:
            self._client = MinioClient(
                endpoint,
                access_key=access_key or None,
                secret_key=secret_key if access_key else None,
                secure=secure,
                region=region,
                http_client=pool,
            )
        except ValueError as error:
            raise EverstepError(
                Reason.STORE_MISCONFIGURED,
                f"{self._url} is no address of an object store ({error}); "
                "write s3+http://host:port/bucket",
            ) from None

    @property
    def url(self) -> str:
        return self._url

    def set_up(self) -> None:
        """A bucket needs none: `check` makes it."""

    def check(self) -> None:
        def make_bucket_if_missing() -> None:
            if self._client.bucket_exists(self._bucket):
                return
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

        self._retried(make_bucket_if_missing)

    def free_bytes(self) -> int | None:
        """None: S3 has no word for it."""
        return None

    def put(self, key: str, data: Buffer) -> None:
        check_key(key)
        with memoryview(data) as view, view.cast("B") as content:
            self._retried(lambda: self._put_once(key, content))

    def stat(self, key: str) -> BlobInfo | None:
        check_key(key)
        return self._retried(lambda: self._stat_once(key))

    def get(self, key: str) -> bytes:
        check_key(key)

        def get_once() -> bytes:
            response = self._client.get_object(self._bucket, key)
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

        return self._retried(get_once, key)

    def read_range(self, key: str, take: Take, offset: int, size: int, length: int) -> None:
        check_key(key)
        check_range(offset, size, length)
        self._retried(lambda: self._read_once(key, take, offset, size, length), key)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        check_prefix(prefix)
        last: str | None = None
        while True:
            page = self._retried(partial(self._page, prefix, last))
            yield from (info for info in page if not info.key.endswith("/"))
            if len(page) < _PAGE_OBJECTS:
                return
            last = page[-1].key

    def delete(self, key: str) -> None:
        check_key(key)

        def delete_once() -> None:
            try:
                self._client.remove_object(self._bucket, key)
            except S3Error as error:
                if error.code not in NO_OBJECT:
                    raise

        self._retried(delete_once)

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        seen: set[str] = set()
        after = ("", "")
        while True:
            page = self._retried(partial(uploads_page, self._client, self._bucket, after))
            new = [upload for upload in page.uploads if upload.upload_id not in seen]
            for upload in new:
                found = self._retried(partial(uploaded_parts, self._client, self._bucket, upload))
                if found is not None:
                    yield found
            # A server that goes on in another order than it lists in must not keep us for ever.
            if page.last is None or not new:
                return
            seen.update(upload.upload_id for upload in new)
            after = page.last

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self._retried(partial(abort_upload, self._client, self._bucket, upload))

    def download_url(self, key: str, expires: timedelta) -> str:
        """A presigned GET; made here, without asking the server."""
        check_key(key)
        return self._retried(
            lambda: self._client.presigned_get_object(
                self._bucket, key, expires=expires, request_date=self._client.store_now()
            )
        )

    def _put_once(self, key: str, content: memoryview) -> None:
        length = len(content)
        if length <= SINGLE_PUT_BYTES:
            # What `put_object` ends in, but for two copies of the object; the server holds what
            # arrives against its SHA-256 (over https: its MD5).
            self._client._put_object(
                self._bucket,
                key,
                cast(bytes, content),
                {"Content-Type": "application/octet-stream"},
            )
        else:
            self._client.put_object(
                self._bucket,
                key,
                cast(BinaryIO, _MemoryReader(content)),
                length,
                part_size=PART_BYTES,
                num_parallel_uploads=1,
            )
        stored = self._stat_once(key)
        if stored is None or stored.size != length:
            raise IncompletePutError(f"{key} did not arrive whole")

    def _stat_once(self, key: str) -> BlobInfo | None:
        try:
            found = self._client.stat_object(self._bucket, key)
        except S3Error as error:
            if error.code in NO_OBJECT:
                return None
            raise
        return BlobInfo(key, found.size or 0, utc(found.last_modified))

    def _read_once(self, key: str, take: Take, offset: int, size: int, length: int) -> None:
        is_whole = size == length
        try:
            response = (
                self._client.get_object(self._bucket, key)
                if is_whole
                else self._client.get_object(self._bucket, key, offset, size)
            )
        except S3Error as error:
            found = self._stat_once(key) if error.code == "InvalidRange" else None
            if found is None:
                raise
            raise wrong_size(key, length, found.size) from None
        complete = False
        try:
            found_length = _object_length(response.headers)
            if found_length != length:
                raise wrong_size(key, length, found_length)
            if not is_whole and response.status != HTTPStatus.PARTIAL_CONTENT:
                raise EverstepError(
                    Reason.STORE_MISCONFIGURED,
                    f"{self._url} answers a range with the whole object; use a store, or a proxy "
                    "before it, that serves ranges",
                )
            position = 0
            with memoryview(bytearray(min(PIECE_BYTES, size))) as buffer:
                while position < size:
                    with buffer[: size - position] as rest:
                        count = response.readinto(rest)
                    if count == 0:
                        raise IncompleteRead(position, size - position)
                    with buffer[:count] as piece:
                        take(position, piece)
                    position += count
            complete = True
        finally:
            if not complete:
                response.close()
            response.release_conn()

    def _page(self, prefix: str, after: str | None) -> tuple[BlobInfo, ...]:
        objects = self._client.list_objects(
            self._bucket, prefix=prefix or None, recursive=True, start_after=after
        )
        return tuple(
            BlobInfo(found.object_name or "", found.size or 0, utc(found.last_modified))
            for found in islice(objects, _PAGE_OBJECTS)
        )

    def _retried(self, call: Callable[[], Result], key: str = "") -> Result:
        """The call's result, after as many tries as `retry_seconds` allow."""
        retrying = Retrying(
            retry=retry_if_exception(may_get_better),
            wait=wait_exponential(multiplier=0.1, max=5) + wait_random(0, 0.2),
            stop=stop_before_delay(self._retry_seconds) | stop_when_event_set(self._given_up),
            sleep=sleep_using_event(self._given_up),
            reraise=True,
        )
        try:
            return retrying(call)
        except _CALL_ERRORS as error:
            raise store_error(error, self.url, key) from error


class _MemoryReader(io.RawIOBase):
    """What minio reads an object from: only the part it asks for is copied."""

    def __init__(self, content: memoryview) -> None:
        super().__init__()
        self._content = content
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._content) if size < 0 else self._position + size
        part = bytes(self._content[self._position : end])
        self._position += len(part)
        return part


def _object_length(headers: Mapping[str, str]) -> int:
    """Of the whole object that an answer is of, or is a range of."""
    length = headers.get("Content-Range", headers.get("Content-Length", "")).split("/")[-1]
    if not length.isdecimal():
        raise EverstepError(
            Reason.STORE_MISCONFIGURED,
            "the object store does not say how long an object is; use a store, or a proxy before "
            "it, that sends Content-Length",
        )
    return int(length)
