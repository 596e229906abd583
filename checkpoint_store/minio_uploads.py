"""Multipart uploads that nobody ended: found on an S3 server, and aborted.

The client has public calls for neither, so its private ones are used, here and nowhere else: they
sign and parse as its public ones do, and the version is held below the next major one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from minio import Minio
from minio.error import S3Error

from checkpoint_store.blobs import UnfinishedUpload
from checkpoint_store.s3_errors import NO_UPLOAD


@dataclass(frozen=True)
class UploadsPage:
    """One answer to a listing; the uploads' sizes are not known yet."""

    uploads: Sequence[UnfinishedUpload]
    #: Key and upload id that the next page begins after; None: there is none.
    last: tuple[str, str] | None


def uploads_page(client: Minio, bucket: str, after: tuple[str, str]) -> UploadsPage:
    """The uploads after a key and upload id, both empty at first."""
    # Without a prefix: MinIO takes one for an object's whole name, and then finds nothing.
    answer = client._list_multipart_uploads(
        bucket, key_marker=after[0] or None, upload_id_marker=after[1] or None
    )
    # One that does not say when it began counts as young, and is left alone.
    now = datetime.now(UTC)
    uploads = [
        UnfinishedUpload(
            found.object_name, found.upload_id or "", 0, utc(found.initiated_time or now)
        )
        for found in answer.uploads
    ]
    more = answer.is_truncated and uploads
    return UploadsPage(uploads, (uploads[-1].key, uploads[-1].upload_id) if more else None)


def uploaded_parts(client: Minio, bucket: str, upload: UnfinishedUpload) -> UnfinishedUpload | None:
    """The upload with the size and age of what has arrived of it; None when it has ended."""
    size, modified, last = 0, upload.modified, ""
    while True:
        try:
            answer = client._list_parts(
                bucket, upload.key, upload.upload_id, part_number_marker=last or None
            )
        except S3Error as error:
            if error.code == NO_UPLOAD:
                return None
            raise
        size += sum(part.size or 0 for part in answer.parts)
        modified = max([modified, *(utc(part.last_modified) for part in answer.parts)])
        following = str(max((part.part_number for part in answer.parts), default=""))
        if not answer.is_truncated or not following or following == last:
            return replace(upload, size=size, modified=modified)
        last = following


def abort_upload(client: Minio, bucket: str, upload: UnfinishedUpload) -> None:
    """Removes an upload's parts; fine when it has ended."""
    try:
        client._abort_multipart_upload(bucket, upload.key, upload.upload_id)
    except S3Error as error:
        if error.code != NO_UPLOAD:
            raise


def utc(moment: datetime | None) -> datetime:
    """A server's moment; the first of all when it says none."""
    return moment.astimezone(UTC) if moment is not None else datetime.fromtimestamp(0, UTC)
