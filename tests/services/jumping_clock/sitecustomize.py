"""A wall clock that a test sets: it is ahead by the seconds in the file EVERSTEP_TEST_CLOCK.

For the services alone: a training process never asks for the time of day.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

_FILE = os.environ.get("EVERSTEP_TEST_CLOCK", "")


def _seconds_ahead() -> float:
    try:
        return float(Path(_FILE).read_text() or 0)
    except OSError:
        return 0.0


if _FILE and sys.orig_argv[1:] in (["-m", "trainer_service"], ["-m", "control_plane"]):
    _time, _time_ns = time.time, time.time_ns

    class JumpingDatetime(datetime.datetime):
        """The same, but for `now`."""

        #: No larger than what modules in C expect.
        __slots__ = ()

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: _time() + _seconds_ahead()
    time.time_ns = lambda: _time_ns() + int(_seconds_ahead() * 1e9)
    datetime.datetime = JumpingDatetime  # type: ignore[misc]
