"""MinIO's server code as a process: started, stopped, started again."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from checkpoint_store import open_blob_store
from everstep.errors import EverstepError, Reason
from everstep.object_store_process import MinioProcess, find_minio_binary

KEYS = ("everstep", "everstep-secret")


def test_objects_outlive_a_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a folder" / "minio"
    server = MinioProcess(folder, 0, *KEYS)
    assert server.pid is None
    try:
        server.start()
        server.start()
        server.wait_ready(60)
        port, pid = server.port, server.pid
        assert port != 0
        assert pid is not None
        assert server.url("bucket") == f"s3+http://127.0.0.1:{port}/bucket"
        store = open_blob_store(server.url("bucket"), *KEYS)
        store.check()
        store.put("a/b", b"kept")
        server.stop()
        assert server.pid is None
        assert not Path(f"/proc/{pid}").exists()
        server.start()
        server.wait_ready(60)
        assert server.port == port
        assert store.get("a/b") == b"kept"
    finally:
        server.stop()
    assert capfd.readouterr() == ("", "")
    assert (folder / "object-store.log").stat().st_size > 0


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = MinioProcess(tmp_path / "minio", port, *KEYS)
        with pytest.raises(EverstepError) as caught:
            server.start()
    assert caught.value.reason is Reason.ADDRESS_IN_USE
    assert str(port) in caught.value.message
    assert server.pid is None
    assert not (tmp_path / "minio").exists()


@pytest.mark.parametrize("keys", [("ab", "long-enough"), ("long-enough", "short")])
def test_keys_that_the_server_would_refuse(tmp_path: Path, keys: tuple[str, str]) -> None:
    with pytest.raises(EverstepError) as caught:
        MinioProcess(tmp_path, 0, *keys)
    assert caught.value.reason is Reason.STORE_MISCONFIGURED


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "minio").write_bytes(b"")
    with pytest.raises(EverstepError) as caught:
        MinioProcess(tmp_path / "minio", 0, *KEYS).start()
    assert caught.value.reason is Reason.STORE_MISCONFIGURED


def test_metadata_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"no database" * 1000)
    with pytest.raises(EverstepError) as caught:
        MinioProcess(tmp_path, 0, *KEYS).start()
    assert caught.value.reason is Reason.STORE_MISCONFIGURED
    assert "object-store.log" in caught.value.message


def test_a_server_that_is_not_started_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(EverstepError) as caught:
        MinioProcess(tmp_path, 0, *KEYS).wait_ready(60)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


def test_the_binary_is_found_beside_this_python() -> None:
    binary = find_minio_binary()
    assert binary is not None
    assert os.access(binary, os.X_OK)
