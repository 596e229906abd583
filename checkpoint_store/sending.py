"""Connections on which a body may take its time, as long as it moves."""

from __future__ import annotations

from typing import Any, Final

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

#: Sent at a time. A time-out is for one of them: for a whole body of a GB it would be a rate that
#: many a network does not have.
SLICE_BYTES: Final = 1024 * 1024
#: Without a slice being taken.
STALLED_SECONDS: Final = 60.0


class _SlicedBody:
    """Sends what stands in memory slice by slice."""

    sock: Any

    def send(self, data: Any) -> None:
        if not isinstance(data, memoryview):
            super().send(data)  # type: ignore[misc]
            return
        # Until now that of connecting; urllib3 sets that of reading before it reads.
        self.sock.settimeout(STALLED_SECONDS)
        for begin in range(0, len(data), SLICE_BYTES):
            with data[begin : begin + SLICE_BYTES] as piece:
                super().send(piece)  # type: ignore[misc]


class _Connection(_SlicedBody, HTTPConnection):
    pass


class _SecureConnection(_SlicedBody, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


#: For `PoolManager.pool_classes_by_scheme`.
POOLS: Final = {"http": _Pool, "https": _SecurePool}
