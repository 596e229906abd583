"""An object store that refuses, is away, comes back, or answers badly."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from checkpoint_store import minio_blobs, open_blob_store
from checkpoint_store.blobs import BlobStore, UnfinishedUpload
from checkpoint_store.minio_blobs import MinioBlobStore
from everstep.errors import EverstepError, Reason
from everstep.object_store_process import MinioProcess
from tests.store.conftest import ACCESS_KEY, SECRET_KEY
from tests.store.seaweedfs import SeaweedProcess, free_ports

UPLOAD = UnfinishedUpload("a/b", "an-upload", 0, datetime.fromtimestamp(0, UTC))
CALLS: list[Callable[[BlobStore], object]] = [
    lambda store: store.check(),
    lambda store: store.put("a/b", b"x"),
    lambda store: store.get("a/b"),
    lambda store: store.stat("a/b"),
    lambda store: store.read_into("a/b", memoryview(bytearray(1))),
    lambda store: list(store.list("")),
    lambda store: store.delete("a/b"),
    lambda store: list(store.unfinished_uploads()),
    lambda store: store.abort_upload(UPLOAD),
]
CALL_NAMES = [
    "check", "put", "get", "stat", "read_into", "list", "delete",
    "unfinished_uploads", "abort_upload",
]  # fmt: skip


def failure(call: Callable[[], object]) -> EverstepError:
    with pytest.raises(EverstepError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


@pytest.fixture(params=["minio", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> MinioProcess | SeaweedProcess:
    started: MinioProcess | SeaweedProcess = request.getfixturevalue(request.param)
    return started


@pytest.mark.parametrize("call", CALLS, ids=CALL_NAMES)
@pytest.mark.parametrize(
    ("access_key", "secret_key"),
    [(ACCESS_KEY, "wrong-secret"), ("nobody", SECRET_KEY), ("", "")],
    ids=["secret", "key", "none"],
)
def test_wrong_credentials_are_refused_at_once(
    server: MinioProcess | SeaweedProcess,
    access_key: str,
    secret_key: str,
    call: Callable[[BlobStore], object],
) -> None:
    opened = open_blob_store(server.url("locked"), ACCESS_KEY, SECRET_KEY)
    opened.check()
    opened.put("a/b", b"x")
    store = open_blob_store(server.url("locked"), access_key, secret_key, retry_seconds=60)
    began = time.monotonic()
    error = failure(lambda: call(store))
    assert error.reason is Reason.STORE_ACCESS_DENIED
    assert "EVERSTEP_STORE_SECRET_KEY" in error.message
    assert SECRET_KEY not in error.message
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("call", CALLS, ids=CALL_NAMES)
def test_a_store_that_is_away(call: Callable[[BlobStore], object]) -> None:
    (port,) = free_ports(1)
    store = open_blob_store(f"s3+http://127.0.0.1:{port}/bucket", "key", "secret", retry_seconds=0)
    error = failure(lambda: call(store))
    assert error.reason is Reason.STORE_UNAVAILABLE
    assert f"127.0.0.1:{port}" in error.message


def test_a_bucket_that_is_gone(minio: MinioProcess) -> None:
    store = open_blob_store(minio.url("never-made"), ACCESS_KEY, SECRET_KEY)
    error = failure(lambda: store.put("a/b", b"x"))
    assert error.reason is Reason.STORE_MISCONFIGURED
    assert "bucket" in error.message


def test_https_to_a_server_that_speaks_http(minio: MinioProcess) -> None:
    url = minio.url("bucket").replace("http", "https")
    store = open_blob_store(url, ACCESS_KEY, SECRET_KEY)
    assert failure(store.check).reason is Reason.STORE_MISCONFIGURED


def test_an_upload_outlives_a_stop_of_the_store(tmp_path: Path) -> None:
    server = MinioProcess(tmp_path / "minio", 0, ACCESS_KEY, SECRET_KEY)
    server.start()
    try:
        server.wait_ready(60)
        store = open_blob_store(server.url("bucket"), ACCESS_KEY, SECRET_KEY, retry_seconds=60)
        store.check()
        contents = {
            f"blobs/{number}": random.Random(number).randbytes(4_000_000) for number in range(3)
        }
        begun, back = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def upload() -> None:
            """Uploads all the time while the store stops, and once more when it is back."""
            try:
                while not back.is_set():
                    for key, content in contents.items():
                        store.put(key, content)
                        begun.set()
            except BaseException as error:
                failures.append(error)

        uploading = threading.Thread(target=upload)
        uploading.start()
        assert begun.wait(60)
        server.stop(grace=0)
        server.start()
        server.wait_ready(60)
        back.set()
        uploading.join(60)
        assert not uploading.is_alive()
        assert failures == []
        for key, content in contents.items():
            assert store.get(key) == content
    finally:
        server.stop()


class ScriptedServer:
    """An S3 server on a real socket that answers what a test tells it, and counts."""

    def __init__(self, script: list[tuple[int, str]]) -> None:
        self.requests: list[tuple[str, int]] = []
        remaining = iter(script)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                self.rfile.read(length)
                outer.requests.append((self.command, length))
                status, code = next(remaining, (200, ""))
                body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("ETag", '"x"')
                self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
                self.send_header("Content-Length", str(len(body) or (3 * (status == 200))))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body or b"abc" * (status == 200))

            do_GET = do_PUT = do_HEAD = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def store(self, retry_seconds: float) -> BlobStore:
        url = f"s3+http://127.0.0.1:{self._server.server_port}/bucket"
        return open_blob_store(url, ACCESS_KEY, SECRET_KEY, retry_seconds=retry_seconds)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[[list[tuple[int, str]]], ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(script: list[tuple[int, str]]) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Script = Callable[[list[tuple[int, str]]], ScriptedServer]


def test_what_may_get_better_is_tried_again(scripted: Script) -> None:
    server = scripted([(503, "SlowDown"), (500, "InternalError"), (502, "")])
    assert server.store(retry_seconds=30).get("a/b") == b"abc"
    assert [method for method, _ in server.requests] == ["GET"] * 4


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "AccessDenied", Reason.STORE_ACCESS_DENIED),
        (403, "InvalidAccessKeyId", Reason.STORE_ACCESS_DENIED),
        (403, "SignatureDoesNotMatch", Reason.STORE_ACCESS_DENIED),
        (507, "XMinioStorageFull", Reason.STORE_FULL),
        (507, "", Reason.STORE_FULL),
        (403, "QuotaExceeded", Reason.STORE_FULL),
        (404, "NoSuchBucket", Reason.STORE_MISCONFIGURED),
        (400, "AuthorizationHeaderMalformed", Reason.STORE_MISCONFIGURED),
        (404, "NoSuchKey", Reason.BLOB_NOT_FOUND),
        (200, "", None),
    ],
)
def test_what_does_not_get_better_is_tried_once(
    scripted: Script, status: int, code: str, reason: Reason | None
) -> None:
    server = scripted([(status, code)])
    store = server.store(retry_seconds=30)
    if reason is None:
        assert store.get("a/b") == b"abc"
    else:
        assert failure(lambda: store.get("a/b")).reason is reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_requests_are_signed_by_the_clock_of_the_store(minio: MinioProcess, hours: int) -> None:
    """A server refuses what is signed a quarter of an hour before or after its own time."""
    store = open_blob_store(minio.url("skewed"), ACCESS_KEY, SECRET_KEY, retry_seconds=0)
    assert isinstance(store, MinioBlobStore)
    store._client._skew = timedelta(hours=hours)
    store.check()
    store._client._skew = timedelta(hours=hours)
    store.put("a/b", b"x")
    store._client._skew = timedelta(hours=hours)
    assert store.stat("a/b") is not None
    store._client._skew = timedelta(hours=hours)
    assert store.get("a/b") == b"x"
    assert abs(store._client._skew) < timedelta(minutes=1)


def test_the_deadline_ends_the_retries(scripted: Script) -> None:
    server = scripted([(503, "SlowDown")] * 1000)
    began = time.monotonic()
    error = failure(lambda: server.store(retry_seconds=1).get("a/b"))
    assert error.reason is Reason.STORE_UNAVAILABLE
    assert "SlowDown" in error.message
    assert 2 <= len(server.requests) <= 10
    assert time.monotonic() - began < 10


def test_an_object_is_one_put_and_its_size_is_looked_at(scripted: Script) -> None:
    size = 20 * 1024 * 1024
    server = scripted([])
    error = failure(lambda: server.store(retry_seconds=0).put("a/b", bytes(size)))
    assert error.reason is Reason.STORE_UNAVAILABLE
    assert "did not arrive whole" in error.message
    assert server.requests == [("PUT", size), ("HEAD", 0)]


def test_an_answer_that_is_cut_off_is_read_again(minio: MinioProcess) -> None:
    """A proxy cuts the first answer in the middle; the second try gets the whole."""
    content = random.Random(1).randbytes(3_000_000)
    direct = open_blob_store(minio.url("cut-off"), ACCESS_KEY, SECRET_KEY)
    direct.check()
    direct.put("a/b", content)
    with CuttingProxy(minio.port, cut_after=1_000_000) as proxy:
        store = open_blob_store(
            f"s3+http://127.0.0.1:{proxy.port}/cut-off", ACCESS_KEY, SECRET_KEY, retry_seconds=30
        )
        target = bytearray(len(content))
        store.read_into("a/b", memoryview(target))
        assert target == content
        assert proxy.connections == 2


def test_a_body_may_take_longer_than_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out is for a part of it: a slow network is none that stands still."""
    monkeypatch.setattr(minio_blobs, "CONNECT_TIMEOUT_SECONDS", 0.3)
    content = bytes(24 * 1024 * 1024)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        received: list[int] = []

        def read_slowly() -> None:
            connection, _ = listener.accept()
            # Whatever else is asked is refused.
            listener.close()
            connection.settimeout(30)
            pause = threading.Event()
            with connection:
                while sum(received) < len(content):
                    pause.wait(0.02)
                    received.append(len(connection.recv(1024 * 1024)))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: x\r\n\r\n")

        reader = threading.Thread(target=read_slowly, daemon=True)
        reader.start()
        store = open_blob_store(
            f"s3+http://127.0.0.1:{listener.getsockname()[1]}/slow",
            ACCESS_KEY,
            SECRET_KEY,
            retry_seconds=0,
        )
        # The body went the whole way; that nobody then says how long the object is, is another
        # matter.
        error = failure(lambda: store.put("a/b", content))
        reader.join(30)
    assert sum(received) >= len(content), error.message


class CuttingProxy:
    """Passes bytes on to a server; its first connection is cut after so many bytes back."""

    def __init__(self, port: int, cut_after: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._target = port
        self._cut_after = cut_after
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.connections += 1
                limit = self._cut_after if self.connections == 1 else None
                upstream = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=_pump, args=(client, upstream, None), daemon=True).start()
                threading.Thread(target=_pump, args=(upstream, client, limit), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            passed += len(data)
            if limit is not None and passed > limit:
                break
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
