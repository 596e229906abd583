"""Reading a manifest from a store."""

from __future__ import annotations

from typing import Final

from checkpoint_store.blobs import BlobStore
from checkpoint_store.digests import blob_digest
from checkpoint_store.manifest import Manifest
from everstep.errors import EverstepError, Reason

#: What is wrong with a blob, by the reason that reading it ended with.
READING_FAULTS: Final = {
    Reason.BLOB_NOT_FOUND: "is missing",
    Reason.CHECKPOINT_CORRUPT: "has another length",
}
#: What is wrong with a blob that was read whole, and is not the one that was named.
OTHER_BYTES: Final = "holds other bytes than were written"


def read_manifest(store: BlobStore, key: str, digest: str | None = None) -> Manifest:
    """A checkpoint's manifest.

    Args:
        store: Where from.
        key: As `manifest_key` makes it.
        digest: What its bytes have to hash to; None: not compared.

    Raises:
        EverstepError: CHECKPOINT_NOT_FOUND, CHECKPOINT_CORRUPT.
    """
    try:
        content = store.get(key)
    except EverstepError as error:
        if error.reason is not Reason.BLOB_NOT_FOUND:
            raise
        raise EverstepError(
            Reason.CHECKPOINT_NOT_FOUND,
            f"there is no checkpoint {key} in {store.url}; list the checkpoints that there are",
            metadata={"manifest_key": key},
        ) from None
    if digest is not None and blob_digest(content) != digest:
        raise corrupt(f"the manifest {key} is not the one that was written", manifest_key=key)
    manifest = Manifest.from_bytes(content)
    if manifest.key != key:
        raise corrupt(f"the manifest {key} is that of {manifest.key}", manifest_key=key)
    return manifest


def corrupt(message: str, **metadata: str) -> EverstepError:
    """CHECKPOINT_CORRUPT, with what callers may use beside it."""
    return EverstepError(
        Reason.CHECKPOINT_CORRUPT, f"{message}; use another checkpoint", metadata=metadata
    )


def corrupt_blob(manifest: Manifest, key: str, fault: str) -> EverstepError:
    """CHECKPOINT_CORRUPT that names the blob; the fault as in `is missing`."""
    return corrupt(
        f"blob {key} of checkpoint {manifest.checkpoint_id} {fault}",
        checkpoint_id=manifest.checkpoint_id,
        blob=key,
    )
