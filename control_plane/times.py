"""Points in time: microseconds since 1970 in the database, Timestamp in messages."""

from __future__ import annotations

import time
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

#: Microseconds in a second.
SECOND: Final = 1_000_000


def now() -> int:
    """The wall clock, in microseconds since 1970."""
    return time.time_ns() // 1000


def after(seconds: float) -> int:
    """The wall clock in so many seconds, in microseconds since 1970."""
    return now() + int(seconds * SECOND)


def timestamp(microseconds: int) -> Timestamp:
    """A point in time as messages carry it."""
    message = Timestamp()
    message.FromMicroseconds(microseconds)
    return message
