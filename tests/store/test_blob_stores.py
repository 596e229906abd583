"""What every store promises, on each of them."""

from __future__ import annotations

import random
import resource
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore, UnfinishedUpload
from everstep.errors import EverstepError, Reason

MIB = 1024 * 1024


def refused(call: Callable[[], object]) -> Reason:
    with pytest.raises(EverstepError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, 100_000, 9 * MIB])
def test_bytes_come_back(store: BlobStore, size: int) -> None:
    content = random.Random(size).randbytes(size)
    before = datetime.now(UTC) - timedelta(seconds=2)
    store.put("blobs/ab/abc", memoryview(content))
    info = store.stat("blobs/ab/abc")
    assert info is not None
    assert (info.key, info.size) == ("blobs/ab/abc", size)
    assert before <= info.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert store.get("blobs/ab/abc") == content
    target = bytearray(size)
    store.read_into("blobs/ab/abc", memoryview(target))
    assert target == content
    with urllib.request.urlopen(
        store.download_url("blobs/ab/abc", timedelta(minutes=5)), timeout=30
    ) as response:
        assert response.read() == content


def test_a_put_replaces(store: BlobStore) -> None:
    store.put("a/b.json", b"first, and longer")
    store.put("a/b.json", b"second")
    assert store.get("a/b.json") == b"second"
    info = store.stat("a/b.json")
    assert info is not None
    assert info.size == 6


def test_what_is_not_there(store: BlobStore) -> None:
    store.put("a/b/c", b"x")
    for key in ("nothing", "a/nothing", "a/b", "a/b/c/d"):
        assert store.stat(key) is None
        assert refused(lambda key=key: store.get(key)) is Reason.BLOB_NOT_FOUND  # type: ignore[misc]
        target = memoryview(bytearray(1))
        assert (
            refused(lambda key=key, target=target: store.read_into(key, target))  # type: ignore[misc]
            is Reason.BLOB_NOT_FOUND
        )
        store.delete(key)
    assert store.get("a/b/c") == b"x"


@pytest.mark.parametrize("length", [0, 2, 4, 100_000])
def test_an_object_of_another_length_is_not_read(store: BlobStore, length: int) -> None:
    store.put("a/b", b"123")
    target = memoryview(bytearray(length))
    assert refused(lambda: store.read_into("a/b", target)) is Reason.CHECKPOINT_CORRUPT


@pytest.mark.parametrize(("begin", "end"), [(0, 4), (3, 9), (8, 10), (0, 10)])
def test_a_range_is_read(store: BlobStore, begin: int, end: int) -> None:
    store.put("a/b", b"0123456789")
    target = bytearray(end - begin)
    store.read_into("a/b", memoryview(target), begin, 10)
    assert target == b"0123456789"[begin:end]


@pytest.mark.parametrize("stored", [b"", b"0123", b"01234567", b"0123456789abc"])
def test_a_range_of_an_object_of_another_length_is_not_read(
    store: BlobStore, stored: bytes
) -> None:
    store.put("a/b", stored)
    target = memoryview(bytearray(4))
    assert refused(lambda: store.read_into("a/b", target, 6, 10)) is Reason.CHECKPOINT_CORRUPT
    assert refused(lambda: store.read_into("a/c", target, 6, 10)) is Reason.BLOB_NOT_FOUND


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (7, 10), (0, 3)])
def test_a_range_that_is_not_inside_is_no_range(store: BlobStore, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="not inside"):
        store.read_into("a/b", memoryview(bytearray(4)), offset, length)


def test_objects_are_listed_by_prefix_and_deleted(store: BlobStore) -> None:
    keys = ["blobs/aa/aa1", "blobs/aa/aa2", "blobs/ab/ab1", "operations/x/1.json", "top"]
    for key in keys:
        store.put(key, key.encode())

    def listed(prefix: str) -> list[str]:
        return sorted(info.key for info in store.list(prefix))

    assert listed("") == keys
    assert listed("blobs/") == keys[:3]
    assert listed("blobs/aa/aa") == keys[:2]
    assert listed("blobs/aa/aa2") == ["blobs/aa/aa2"]
    assert listed("nothing/") == []
    assert {info.key: info.size for info in store.list("")} == {key: len(key) for key in keys}
    store.delete("blobs/aa/aa1")
    store.delete("blobs/aa/aa1")
    assert listed("blobs/") == keys[1:3]


def test_a_listing_goes_on_over_several_answers(store: BlobStore) -> None:
    keys = {f"many/{number:04}" for number in range(1005)}
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda key: store.put(key, b""), keys))
    found = [info.key for info in store.list("many/")]
    assert len(found) == len(keys)
    assert set(found) == keys


def test_one_store_serves_many_threads(store: BlobStore) -> None:
    contents = {f"a/{number}": random.Random(number).randbytes(50_000) for number in range(32)}
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(store.put, contents.keys(), contents.values()))
        assert list(executor.map(store.get, contents)) == list(contents.values())


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "a/../b", "a/..", "a//b", "a/", "./a", ".hidden", "a/.tmp",
     "a b", "a\\b", "a\nb", "a\0b", "ä", "a?b", "x" * 513],
)  # fmt: skip
def test_a_bad_key_reaches_no_store(folder_store: BlobStore, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: folder_store.put(key, b""),
        lambda: folder_store.get(key),
        lambda: folder_store.stat(key),
        lambda: folder_store.delete(key),
        lambda: folder_store.read_into(key, memoryview(b"")),
        lambda: folder_store.download_url(key, timedelta(1)),
    ]
    for call in calls:
        assert refused(call) is Reason.INVALID_REQUEST
    minio = open_blob_store("s3+http://127.0.0.1:1/bucket", retry_seconds=0)
    assert refused(lambda: minio.put(key, b"")) is Reason.INVALID_REQUEST


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../", "a//", ".hid"])
def test_a_bad_prefix_lists_nothing(folder_store: BlobStore, prefix: str) -> None:
    assert refused(lambda: list(folder_store.list(prefix))) is Reason.INVALID_REQUEST


def test_a_store_is_opened_again_by_its_url(store: BlobStore, store_url: str) -> None:
    assert store.url == store_url


@pytest.mark.parametrize(
    "url",
    ["", "store", "/srv/store", "file://store", "file:relative", "file:///a?b", "http://h/b",
     "s3://bucket", "s3+http://host:9000", "s3+http://host:9000/", "s3+http:///bucket",
     "s3+http://host:9000/Bucket", "s3+http://host:9000/a/b", "s3+http://host:0/bucket",
     "s3+http://host:99999/bucket", "s3+http://host:x/bucket", "s3+http://[::1/bucket",
     "s3+http://key:secret@host/bucket", "s3+http://host/bucket?x=1", "s3+ftp://host/bucket"],
)  # fmt: skip
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(EverstepError) as caught:
        open_blob_store(url)
    assert caught.value.reason is Reason.STORE_MISCONFIGURED
    assert "secret" not in caught.value.message.replace("EVERSTEP_STORE_SECRET_KEY", "")


def test_what_is_on_its_way_into_a_folder_is_not_listed(tmp_path: Path) -> None:
    store = open_blob_store(tmp_path.as_uri())
    store.set_up()
    store.put("a/b", b"x")
    (tmp_path / ".incoming" / "cut-off").write_bytes(b"half")
    (tmp_path / "a" / ".b.part").write_bytes(b"half")
    assert [info.key for info in store.list("")] == ["a/b"]


def test_nothing_is_missing_from_a_folder_that_is_away(tmp_path: Path) -> None:
    """An empty mount point: a checkpoint is not damaged, nor removed, for that; nothing is put."""
    folder, disk = tmp_path / "store", tmp_path / "disk"
    store = open_blob_store(folder.as_uri())
    upload = UnfinishedUpload("", "cut-off", 0, datetime.now(UTC))
    calls: list[Callable[[], object]] = [
        store.check,
        store.free_bytes,
        lambda: store.put("a/b", b"x"),
        lambda: store.stat("a/b"),
        lambda: store.get("a/b"),
        lambda: store.read_into("a/b", memoryview(bytearray(1))),
        lambda: list(store.list("")),
        lambda: list(store.list("a/")),
        lambda: store.delete("a/b"),
        lambda: list(store.unfinished_uploads()),
        lambda: store.abort_upload(upload),
    ]

    def all_end() -> None:
        for call in calls:
            assert refused(call) is Reason.STORE_UNAVAILABLE
        assert not folder.exists() or list(folder.iterdir()) == []

    all_end()
    store.set_up()
    store.put("a/b", b"x")
    folder.rename(disk)
    all_end()
    folder.mkdir()
    all_end()
    folder.rmdir()
    disk.rename(folder)
    store.set_up()
    for call in calls[:-1]:
        call()


def test_a_listing_that_lost_its_folder_is_not_whole(tmp_path: Path) -> None:
    store = open_blob_store((tmp_path / "store").as_uri())
    store.set_up()
    for key in ("a/1", "b/1"):
        store.put(key, b"")
    listing = store.list("")
    assert next(listing).key == "a/1"
    (tmp_path / "store").rename(tmp_path / "disk")
    assert refused(lambda: list(listing)) is Reason.STORE_UNAVAILABLE


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    store = open_blob_store((tmp_path / "store").as_uri())
    assert refused(store.set_up) is Reason.STORE_MISCONFIGURED
    assert refused(store.check) is Reason.STORE_MISCONFIGURED
    assert refused(lambda: store.put("a/b", b"")) is Reason.STORE_MISCONFIGURED


def test_a_folder_without_room_says_so_and_keeps_nothing_half(tmp_path: Path) -> None:
    store = open_blob_store(tmp_path.as_uri())
    store.set_up()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert refused(lambda: store.put("blobs/whole", bytes(100_000))) is Reason.STORE_FULL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.stat("blobs/whole") is None
    assert list(store.unfinished_uploads()) == []
    store.put("blobs/whole", bytes(100_000))
