"""The command line as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.services.processes import PATIENCE_SECONDS, ServiceProcess

EVERSTEP = [str(Path(sys.executable).parent / "everstep")]
Everstep = Callable[..., subprocess.CompletedProcess[str]]


def environment(address: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("EVERSTEP_")}
    return {**inherited, "EVERSTEP_ADDRESS": address, "COLUMNS": "200"}


def runner(control_plane: ServiceProcess, folder: Path) -> Everstep:
    """Runs commands in a folder and looks at their exit codes."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [*EVERSTEP, *arguments],
            env=environment(control_plane.address),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    return run
