"""One sweep through the store: what manifests name is marked, and the rest removed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from checkpoint_store.blobs import BlobInfo, BlobStore, UnfinishedUpload
from checkpoint_store.digests import blob_key
from checkpoint_store.long_uploads import remove_old_announcements, spared_since
from checkpoint_store.sweeps import AnnouncedSweep, remove_stale_sweeps
from control_plane import store_contents
from control_plane.caller import Caller
from everstep.errors import EverstepError, Reason


@dataclass(frozen=True)
class Collection:
    """What a collection removed, or would remove."""

    removed_blobs: int
    removed_bytes: int
    kept_blobs: int
    aborted_uploads: int
    aborted_bytes: int


class GarbageSweep:
    """Blocks, in one thread.

    Args:
        store: Its calls must not be tried again for longer than `sweeps.RETRY_SECONDS`.
        oldest: What was put since is spared; and more, while an upload takes long.
        removed: Keys, and prefixes that end with a slash, of manifests that are to be removed.
        dry_run: Nothing is removed.
        caller: When it goes, the sweep ends.
    """

    def __init__(
        self,
        store: BlobStore,
        oldest: datetime,
        removed: frozenset[str],
        dry_run: bool,
        caller: Caller,
    ) -> None:
        self._store = store
        self._oldest = oldest
        self._removed = removed
        self._dry_run = dry_run
        self._caller = caller

    def run(self) -> Collection:
        """Sweeps.

        Raises:
            EverstepError: STORE_UNAVAILABLE and the like; CALL_CANCELLED when the caller has gone;
                CHECKPOINT_CORRUPT when a manifest cannot be read.
        """
        if not self._dry_run:
            remove_stale_sweeps(self._store)
            remove_old_announcements(self._store)
        spared = spared_since(self._store)
        if spared is not None:
            self._oldest = min(self._oldest, spared)
        stored = []
        for info in self._store.list(store_contents.BLOBS):
            self._caller.check()
            stored.append(info)
        named = self._named()
        garbage = [info for info in stored if info.key not in named and self._is_old(info)]
        if garbage and not self._dry_run:
            garbage = self._remove(garbage)
        aborted = self._abort()
        return Collection(
            removed_blobs=len(garbage),
            removed_bytes=sum(info.size for info in garbage),
            kept_blobs=len(stored) - len(garbage),
            aborted_uploads=len(aborted),
            aborted_bytes=sum(upload.size for upload in aborted),
        )

    def _is_old(self, found: BlobInfo | UnfinishedUpload) -> bool:
        return found.modified < self._oldest

    def _remove(self, garbage: list[BlobInfo]) -> list[BlobInfo]:
        """What of it is removed: an upload may have been given its manifest meanwhile."""
        named = self._named()
        gone = []
        with AnnouncedSweep(self._store) as sweep:
            for info in garbage:
                self._caller.check()
                if info.key not in named and sweep.remove_if(info.key, self._is_old):
                    gone.append(info)
        return gone

    def _abort(self) -> list[UnfinishedUpload]:
        """The uploads that no part came of since; they are gone, but for a dry run."""
        uploads = store_contents.unfinished_uploads(self._store)
        old = [upload for upload in uploads if self._is_old(upload)]
        for upload in old if not self._dry_run else ():
            self._caller.check()
            self._store.abort_upload(upload)
        return old

    def _named(self) -> set[str]:
        """The blobs that the manifests in the store name, but for those that are to be removed."""
        named: set[str] = set()
        for key, manifest in store_contents.manifests(self._store, self._removed):
            self._caller.check()
            if manifest is None:
                raise EverstepError(
                    Reason.CHECKPOINT_CORRUPT,
                    f"{key} cannot be read, so what it needs is not known; delete that "
                    "checkpoint, then collect again",
                    metadata={"manifest_key": key},
                )
            named.update(blob_key(blob.digest) for blob in manifest.blobs)
        return named
