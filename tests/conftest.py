"""What a run of the tests says at its end."""

from __future__ import annotations

from collections import defaultdict

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The pieces of state that were left out on purpose, and what noticed."""
    caught: dict[str, list[str]] = defaultdict(list)
    survived: set[str] = set()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in getattr(report, "user_properties", ()):
                if name == "mutation":
                    piece, check = str(value).split(" | ")
                    caught[piece].append(check)
                    if outcome == "failed":
                        survived.add(piece)
    if not caught:
        return
    terminalreporter.write_sep("-", "left out on purpose")
    width = max(map(len, caught))
    for piece, checks in sorted(caught.items()):
        said = "SURVIVED" if piece in survived else "caught by"
        terminalreporter.write_line(f"{piece:<{width}}  {said} {', '.join(sorted(checks))}")
    terminalreporter.write_line(f"{len(caught)} pieces, {len(survived)} survived")
