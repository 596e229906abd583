"""The parts of a run as processes, which say JSON lines and are told lines."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

#: The most that a run waits for a word of one of its processes.
PATIENCE_SECONDS: Final = 300.0


class Part:
    """`python -m MODULE ...`; a context manager that ends it.

    Args:
        module: What is run.
        asked: Its argument, as JSON; None for none.
        settings: EVERSTEP_* of its environment; those of this process are left out.
        log: Takes what it writes to standard error.
    """

    def __init__(
        self,
        module: str,
        asked: Mapping[str, Any] | None,
        log: Path,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("EVERSTEP_")}
        self._module = module
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *([] if asked is None else [json.dumps(asked)])],
                env={**inherited, **(settings or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        """The next line that it writes.

        Raises:
            RuntimeError: When it ends, or says nothing for too long.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_SECONDS)
        line = self._process.stdout.readline().decode() if ready else ""
        if not line:
            raise RuntimeError(f"{self._module} says nothing: {self._log.read_text()[-3000:]}")
        return line.strip()

    def word(self) -> dict[str, Any]:
        """The next line, as JSON."""
        found: dict[str, Any] = json.loads(self.line())
        return found

    def tell(self, text: str) -> None:
        """Writes a line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def memory_bytes(self) -> int:
        """What it alone has in memory."""
        found: int = psutil.Process(self._process.pid).memory_full_info().uss
        return found

    def processor_seconds(self) -> float:
        """Processor time that it has taken."""
        used = psutil.Process(self._process.pid).cpu_times()
        return used.user + used.system


def control_plane(folder: Path, database: Path) -> tuple[Part, str]:
    """A control plane that serves, and its address."""
    settings = {
        "EVERSTEP_LISTEN": "127.0.0.1:0",
        "EVERSTEP_DATABASE_URL": f"sqlite:///{database}",
        "EVERSTEP_STORE_URL": (folder / "store").as_uri(),
    }
    part = Part("control_plane", None, folder / "control-plane.log", settings)
    try:
        return part, part.line().removeprefix("listening on ")
    except RuntimeError:
        part.__exit__(None, None, None)
        raise


def stdin_line() -> str:
    """What a part is told next."""
    return sys.stdin.readline().strip()


def say(**found: Any) -> None:
    """A line of JSON to whoever started this process."""
    print(json.dumps(found), flush=True)
