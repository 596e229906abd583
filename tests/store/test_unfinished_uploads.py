"""An upload that a killed process left half way is found and aborted."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import minio_blobs, open_blob_store
from checkpoint_store.blobs import BlobStore, UnfinishedUpload
from checkpoint_store.minio_blobs import MinioBlobStore
from everstep.object_store_process import MinioProcess
from tests.store.conftest import ACCESS_KEY, SECRET_KEY
from tests.store.seaweedfs import SeaweedProcess
from tests.store.uploading import LARGE_BYTES, PART_BYTES

KEY = "blobs/ab/" + "ab" * 32


def leave_upload(url: str, key: str = KEY) -> None:
    """A process that dies by SIGKILL while it puts a large object."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.store.uploading", url, key],
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_upload_left_is_listed_and_aborted(store: BlobStore) -> None:
    assert list(store.unfinished_uploads()) == []
    before = datetime.now(UTC) - timedelta(seconds=2)
    leave_upload(store.url)
    assert list(store.list("")) == []
    [left] = store.unfinished_uploads()
    if isinstance(store, MinioBlobStore):
        assert (left.key, left.size) == (KEY, PART_BYTES)
    else:
        assert (left.key, left.size) == ("", LARGE_BYTES)
    assert before <= left.modified <= datetime.now(UTC) + timedelta(seconds=2)
    store.abort_upload(left)
    assert list(store.unfinished_uploads()) == []
    store.abort_upload(left)
    store.put(KEY, b"whole")
    assert store.get(KEY) == b"whole"
    assert list(store.unfinished_uploads()) == []


@pytest.fixture(params=["minio", "seaweedfs"])
def bucket(request: pytest.FixtureRequest) -> MinioBlobStore:
    return open_bucket(request.getfixturevalue(request.param))


def open_bucket(server: MinioProcess | SeaweedProcess) -> MinioBlobStore:
    url = server.url(f"test-{secrets.token_hex(6)}")
    opened = open_blob_store(url, ACCESS_KEY, SECRET_KEY)
    assert isinstance(opened, MinioBlobStore)
    opened.check()
    return opened


def test_an_upload_that_was_aborted_under_way_begins_anew(
    bucket: MinioBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minio_blobs, "SINGLE_PUT_BYTES", PART_BYTES)
    monkeypatch.setattr(minio_blobs, "PART_BYTES", PART_BYTES)
    client: Any = bucket._client
    upload_part = client._upload_part
    aborted: list[UnfinishedUpload] = []

    def abort_once(*args: Any) -> str:
        if not aborted:
            [upload] = bucket.unfinished_uploads()
            bucket.abort_upload(upload)
            aborted.append(upload)
        etag: str = upload_part(*args)
        return etag

    client._upload_part = abort_once
    content = random.Random(1).randbytes(LARGE_BYTES)
    bucket.put(KEY, content)
    assert bucket.get(KEY) == content
    assert list(bucket.unfinished_uploads()) == []


def test_many_uploads_and_parts_come_over_several_answers(
    minio: MinioProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS orders them in one way and goes on after another: it gives the first page."""
    bucket = open_bucket(minio)
    client: Any = bucket._client
    keys = sorted(f"blobs/{number:02}/x" for number in range(7))
    for key in keys:
        upload_id = client._create_multipart_upload(
            bucket._bucket, key, {"Content-Type": "application/octet-stream"}
        )
    for number in (1, 2, 3):
        client._upload_part(bucket._bucket, keys[-1], b"x" * number, None, upload_id, number)
    for name, limit in (("_list_multipart_uploads", "max_uploads"), ("_list_parts", "max_parts")):
        call = getattr(client, name)
        monkeypatch.setattr(
            client,
            name,
            lambda *args, call=call, limit=limit, **rest: call(*args, **{limit: 2}, **rest),
        )
    found = {upload.key: upload.size for upload in bucket.unfinished_uploads()}
    assert found[keys[-1]] == 6
    assert sorted(found) == keys


def test_an_upload_is_as_old_as_its_newest_part(bucket: MinioBlobStore) -> None:
    client: Any = bucket._client
    upload_id = client._create_multipart_upload(
        bucket._bucket, KEY, {"Content-Type": "application/octet-stream"}
    )
    [begun] = bucket.unfinished_uploads()
    # Servers tell whole seconds of parts.
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    now = begun
    while now.modified <= begun.modified and datetime.now(UTC) < deadline:
        client._upload_part(bucket._bucket, KEY, b"part", None, upload_id, 1)
        [now] = bucket.unfinished_uploads()
    assert now.modified > begun.modified
