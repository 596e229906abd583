"""A control plane with scripts, and both faces of the SDK to read it with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from everstep import AsyncClient, Client, Event
from tests.sdk.scripted_control_plane import ScriptedControlPlane

#: Reads an operation's events to the end; both faces must read the same.
Read = Callable[..., list[Event]]


@pytest.fixture
def control_plane() -> Iterator[ScriptedControlPlane]:
    scripted = ScriptedControlPlane()
    yield scripted
    scripted.stop()


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest, control_plane: ScriptedControlPlane) -> Read:
    def read_sync(after: int = 0, *, transient: bool = True) -> list[Event]:
        with Client(control_plane.address) as client:
            return list(client.operation("op-1").events(after, transient=transient))

    def read_async(after: int = 0, *, transient: bool = True) -> list[Event]:
        async def read_all() -> list[Event]:
            async with AsyncClient(control_plane.address) as client:
                stream = client.operation("op-1").events(after, transient=transient)
                return [event async for event in stream]

        return asyncio.run(read_all())

    return read_sync if request.param == "sync" else read_async
