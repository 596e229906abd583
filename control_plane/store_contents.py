"""What Everstep keeps in the store: manifests, blobs, and uploads that were not ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import structlog

from checkpoint_store.blobs import BlobStore, UnfinishedUpload
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.manifest import Manifest
from everstep.errors import EverstepError, Reason

_log = structlog.get_logger(__name__)

BLOBS: Final = "blobs/"
MANIFESTS: Final = "operations/"


def manifests(
    store: BlobStore, removed: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Manifest | None]]:
    """The manifests in the store by key, registered or not; None for one that cannot be read.

    Args:
        store: Where they are.
        removed: Keys, and prefixes that end with a slash, of what is to be removed: left out.
    """
    is_removed = _matcher(removed)
    for info in store.list(MANIFESTS):
        if is_removed(info.key):
            continue
        try:
            yield info.key, read_manifest(store, info.key)
        except EverstepError as error:
            if error.reason is Reason.CHECKPOINT_CORRUPT:
                yield info.key, None
            elif error.reason is not Reason.CHECKPOINT_NOT_FOUND:
                raise


def unfinished_uploads(store: BlobStore) -> Iterator[UnfinishedUpload]:
    """Uploads of blobs and manifests; others in the bucket are not Everstep's.

    None where the store does not list them, or not for these credentials.
    """
    try:
        for upload in store.unfinished_uploads():
            if not upload.key or upload.key.startswith((BLOBS, MANIFESTS)):
                yield upload
    except EverstepError as error:
        if error.reason not in (Reason.STORE_ACCESS_DENIED, Reason.STORE_MISCONFIGURED):
            raise
        _log.warning("unfinished uploads are not known", reason=error.reason, error=error.message)


def _matcher(removed: Iterable[str]) -> Callable[[str], bool]:
    keys = {key for key in removed if not key.endswith("/")}
    prefixes = tuple(key for key in removed if key.endswith("/"))
    return lambda key: key in keys or (bool(prefixes) and key.startswith(prefixes))
