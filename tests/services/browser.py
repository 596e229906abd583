"""A real Chromium without a window, and what a test must know of a page in it."""

from __future__ import annotations

import os
import shutil
from typing import Any, Final

import pytest

#: Nothing but the page: no first-run pages, no updates, nothing that asks another host.
FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Milliseconds that a browser waits for what a test wants to see.
PATIENCE_MILLISECONDS: Final = 60_000
#: Notes the numbers of all durable events that come in, before the page sees them.
RECORDER: Final = """
  window.sequences = [];
  const Original = window.EventSource;
  window.EventSource = class extends Original {
    constructor(...given) {
      super(...given);
      super.addEventListener("events", ({ data }) => {
        const numbers = JSON.parse(data).map((event) => Number(event.sequence ?? 0));
        window.sequences.push(...numbers.filter(Boolean));
      });
    }
  };
"""


def chromium() -> str:
    """Where the browser is; the test is skipped where there is none."""
    named = os.environ.get("EVERSTEP_TEST_CHROMIUM", "")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium: apt-get install chromium, or name it: EVERSTEP_TEST_CHROMIUM")
    return found


class Witness:
    """What a page said to the console, whom it asked, and what was refused."""

    def __init__(self, page: Any, url: str) -> None:
        self._url = url
        self.errors: list[str] = []
        self.requests: list[str] = []
        #: (status, path) of each answer that was an error.
        self.refused: list[tuple[int, str]] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("response", self._answered)

    def strangers(self) -> list[str]:
        """What was asked of any other host."""
        assert self.requests
        return [url for url in self.requests if not url.startswith(self._url)]

    def _heard(self, message: Any) -> None:
        # The browser's own word for an answer that `refused` has, or for a service that is away.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.refused.append((response.status, response.url.removeprefix(self._url)))
