"""Blobs and manifests: where checkpoints are kept. Knows neither gRPC nor torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from everstep.errors import EverstepError, Reason

if TYPE_CHECKING:
    from checkpoint_store.blobs import BlobStore

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
DEFAULT_RETRY_SECONDS: Final = 60.0


def open_blob_store(
    url: str,
    access_key: str = "",
    secret_key: str = "",
    region: str = "us-east-1",
    retry_seconds: float = DEFAULT_RETRY_SECONDS,
) -> BlobStore:
    """The store that a URL names; nothing is asked of it yet (`check` does that).

    Args:
        url: `file:///absolute/folder`, `s3+http://host:port/bucket` or `s3+https://...`.
        access_key: Of the object store; a folder needs none.
        secret_key: Beside the access key.
        region: Of the bucket.
        retry_seconds: How long a call to an object store is tried again.

    Raises:
        EverstepError: STORE_MISCONFIGURED.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad_url("its host or port is malformed") from None
    if parts.query or parts.fragment:
        raise _bad_url("there is a ? or # in it")
    if parts.scheme == "file":
        return _open_folder(parts.netloc, unquote(parts.path))
    if parts.scheme not in ("s3+http", "s3+https"):
        raise _bad_url(f"it begins with {parts.scheme + ':' if parts.scheme else 'no scheme'}")
    if parts.username is not None or parts.password is not None:
        raise _bad_url(
            "credentials belong in EVERSTEP_STORE_ACCESS_KEY and EVERSTEP_STORE_SECRET_KEY"
        )
    bucket = parts.path.strip("/")
    if not parts.hostname or port == 0 or not _BUCKET.fullmatch(bucket):
        raise _bad_url("it needs a host and, after one slash, a bucket's name")
    # Imported here: the training process reads digests and layouts and needs no S3 client.
    from checkpoint_store.minio_blobs import MinioBlobStore

    return MinioBlobStore(
        parts.netloc,
        bucket,
        access_key,
        secret_key,
        secure=parts.scheme == "s3+https",
        region=region,
        retry_seconds=retry_seconds,
    )


def _open_folder(host: str, path: str) -> BlobStore:
    from checkpoint_store.local_blobs import LocalBlobStore

    if host not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise _bad_url("a folder is named by its absolute path, as in file:///srv/everstep")
    return LocalBlobStore(Path(path))


def _bad_url(detail: str) -> EverstepError:
    return EverstepError(
        Reason.STORE_MISCONFIGURED,
        f"the store's URL is refused: {detail}; write file:///absolute/folder or "
        "s3+http://host:port/bucket in EVERSTEP_STORE_URL",
    )
