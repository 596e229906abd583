"""Notice that the machine will be taken away: a file that an agent writes, or a signal."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

#: As a supervisor sends it that cannot write a file.
NOTICE_SIGNAL: Final = signal.SIGUSR2
#: Seconds between two looks for the file.
LOOK_SECONDS: Final = 0.5


class PreemptionNotice:
    """Requests a stop once there is notice; from then on it is a stop like any other.

    Args:
        file: Its appearance is the notice; None: the signal alone is.
        stop: Set by the notice.
    """

    def __init__(self, file: Path | None, stop: asyncio.Event) -> None:
        self._file = file
        self._stop = stop

    async def watch(self) -> None:
        """Looks for a notice until there is one."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(NOTICE_SIGNAL, self._take, NOTICE_SIGNAL.name)
        if self._file is None:
            return
        while not await asyncio.to_thread(os.path.exists, self._file):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stop.wait()
                return
        self._take(str(self._file))

    def _take(self, source: str) -> None:
        _log.warning("this machine will be taken away", notice=source)
        self._stop.set()
