"""Real stores: a folder, MinIO's server code, SeaweedFS; started once, a bucket for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from everstep.object_store_process import MinioProcess
from tests.store.seaweedfs import SeaweedProcess

ACCESS_KEY = "everstep"
SECRET_KEY = "everstep-secret"


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioProcess]:
    process = MinioProcess(tmp_path_factory.mktemp("minio"), 0, ACCESS_KEY, SECRET_KEY)
    process.start()
    try:
        process.wait_ready(60)
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    process = SeaweedProcess(tmp_path_factory.mktemp("seaweedfs"), ACCESS_KEY, SECRET_KEY)
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture(params=["folder", "minio", "seaweedfs"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that nobody used before."""
    if request.param == "folder":
        return (tmp_path / "store").as_uri()
    server: MinioProcess | SeaweedProcess = request.getfixturevalue(request.param)
    return server.url(f"test-{secrets.token_hex(6)}")


@pytest.fixture
def store(store_url: str) -> BlobStore:
    """The store of that URL, ready."""
    opened = open_blob_store(store_url, ACCESS_KEY, SECRET_KEY, retry_seconds=20)
    opened.set_up()
    opened.check()
    return opened


@pytest.fixture
def folder_store(tmp_path: Path) -> BlobStore:
    opened = open_blob_store((tmp_path / "store").as_uri())
    opened.set_up()
    opened.check()
    return opened
