"""The dashboard over HTTP, as a browser asks it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.control_plane.conftest import LEASE_SECONDS
from tests.control_plane.scripted_trainer import PATIENCE_SECONDS
from tests.services.processes import ServiceProcess


def control_plane_with_dashboard(
    folder: Path, store_settings: dict[str, str], **settings: str
) -> ServiceProcess:
    """A control plane over an empty SQLite database, not yet started."""
    return ServiceProcess(
        "control_plane",
        {
            "EVERSTEP_DATABASE_URL": f"sqlite:///{folder / 'control-plane.db'}",
            **store_settings,
            "EVERSTEP_LEASE_SECONDS": str(LEASE_SECONDS),
            "EVERSTEP_DASHBOARD_LISTEN": "127.0.0.1:0",
            **settings,
        },
        folder / "control-plane.log",
    )


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    content: Any


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    event: str
    #: The id that a browser would open the stream again with.
    last_id: str
    content: Any


class Dashboard:
    """Asks; nothing is added that a test does not say."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def change(self, path: str, body: Any, method: str = "POST", **headers: str) -> Answer:
        """As the page itself does it."""
        own = {
            "Content-Type": "application/json",
            "Origin": f"http://{self.host}:{self.port}",
            "Sec-Fetch-Site": "same-origin",
        }
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask(method, path, json.dumps(body).encode(), {**own, **given})

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            return Answer(
                response.status, response.headers, json.loads(content) if is_json else content
            )
        finally:
            connection.close()

    @contextmanager
    def stream(self, path: str, last_id: str = "") -> Iterator[Iterator[Sent]]:
        """What a stream sends, until it ends."""
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield _events(response, last_id)
        finally:
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    async def read(
        self, path: str, wanted: Callable[[Sent], bool], last_id: str = ""
    ) -> list[Sent]:
        """What a stream sends up to the first that is wanted, or to its end."""

        def read_until() -> list[Sent]:
            sent = []
            with self.stream(path, last_id) as events:
                for event in events:
                    sent.append(event)
                    if wanted(event):
                        break
            return sent

        return await asyncio.to_thread(read_until)


def sequences(sent: list[Sent]) -> list[int]:
    """The durable events of one operation's stream, by their numbers."""
    return [
        int(event["sequence"])
        for message in sent
        if message.event == "events"
        for event in message.content
        if "sequence" in event
    ]


def _events(response: http.client.HTTPResponse, last_id: str) -> Iterator[Sent]:
    name, data = "message", []
    while line := response.readline():
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "id":
            last_id = value
        elif field == "data":
            data.append(value)
        elif not field and data:
            yield Sent(name, last_id, json.loads("\n".join(data)))
            name, data = "message", []
