"""Runs `everstep demo` and writes what it printed to docs/images/demo.svg (make picture)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.terminal_theme import MONOKAI

from everstep.cli import console as shared
from everstep.cli import demo

PICTURE = Path(__file__).with_name("demo.svg")


def main() -> int:
    # No terminal: lines instead of a moving bar, but with their colours.
    recorder = Console(record=True, width=112, color_system="truecolor", highlight=False)

    def the_recorder() -> Any:
        return recorder

    for module in (shared, demo):
        module.data = the_recorder  # type: ignore[attr-defined]
    demo.messages = the_recorder  # type: ignore[attr-defined]
    try:
        demo.demo(keep=None)
    except typer.Exit as ended:
        return ended.exit_code
    recorder.save_svg(str(PICTURE), title="everstep demo", theme=MONOKAI)
    return 0


if __name__ == "__main__":
    sys.exit(main())
