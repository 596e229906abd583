"""The command line: `everstep`. One file per noun."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; every error is one line and an exit code."""
    from everstep.cli.application import run

    sys.exit(run(sys.argv[1:]))
