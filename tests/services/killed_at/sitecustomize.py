"""Kills a trainer with SIGKILL at a named point of a checkpoint's way: on its PYTHONPATH.

EVERSTEP_TEST_KILL names the point. Nothing happens before the trainer has stored a checkpoint, or,
for a point of the restore, has read from a blob that it did not write itself.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

_POINT = os.environ.get("EVERSTEP_TEST_KILL", "")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Points:
    """Where a trainer is on a checkpoint's way, by the calls of its store."""

    def __init__(self) -> None:
        #: Checkpoints of a training that are stored; the preflight's is none.
        self.stored = 0
        self.written: set[str] = set()
        #: Of the thread that uploads: bytes that it may still send.
        self.sending = threading.local()

    def put(self, call: Callable[..., Any], store: Any, key: str, data: Any) -> Any:
        is_manifest = key.startswith("operations/") and "/preflight-" not in key
        armed = self.stored > 0
        self.written.add(key)
        if armed and is_manifest and _POINT == "before the manifest":
            _die()
        if armed and not is_manifest and _POINT == "in a blob":
            self.sending.left = len(memoryview(data).cast("B")) // 2
        result = call(store, key, data)
        if armed and not is_manifest and _POINT == "between two blobs":
            _die()
        if armed and is_manifest and _POINT == "after the manifest":
            _die()
        self.stored += is_manifest
        return result

    def read_range(
        self, call: Callable[..., Any], store: Any, key: str, *rest: Any, **more: Any
    ) -> Any:
        result = call(store, key, *rest, **more)
        if key not in self.written and _POINT == "in the restore":
            _die()
        return result

    def sendall(self, call: Callable[..., Any], connection: Any, data: Any, *flags: Any) -> Any:
        left = getattr(self.sending, "left", None)
        if left is not None:
            content = memoryview(data).cast("B")
            if len(content) > left:
                call(connection, content[:left])
                _die()
            self.sending.left = left - len(content)
        return call(connection, data, *flags)


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    call = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **options: wrapper(call, *arguments, **options))


if _POINT and sys.orig_argv[1:] == ["-m", "trainer_service"]:
    from checkpoint_store.minio_blobs import MinioBlobStore

    points = _Points()
    _wrap(MinioBlobStore, "put", points.put)
    _wrap(MinioBlobStore, "read_range", points.read_range)
    _wrap(socket.socket, "sendall", points.sendall)
