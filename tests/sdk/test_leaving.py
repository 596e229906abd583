"""Whoever leaves a watch, in whatever way, leaves no stream open on the service."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from everstep import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    EverstepError,
    OperationState,
    Reason,
    ServiceUnavailable,
)
from tests.sdk.scripted_control_plane import ScriptedControlPlane, Silence, events
from tests.services.processes import wait_for

WAITS = [events(1, 2), events(3), Silence.FOR_EVER]


def assert_nothing_is_open(control_plane: ScriptedControlPlane) -> None:
    assert control_plane.watched
    wait_for(lambda: control_plane.open_streams == 0, "the streams to be closed", patience=5)


def test_break_ends_the_stream(control_plane: ScriptedControlPlane) -> None:
    control_plane.scripts += [WAITS, WAITS]
    with Client(control_plane.address) as client:
        handle = client.operation("op-1")
        for event in handle.events():
            if event.sequence == 2:
                break
        assert_nothing_is_open(control_plane)
        with handle.events() as stream:
            next(stream)
            assert control_plane.open_streams == 1
        assert_nothing_is_open(control_plane)
        assert list(stream) == []


async def test_break_ends_the_stream_of_asyncio(control_plane: ScriptedControlPlane) -> None:
    control_plane.scripts += [WAITS, WAITS]
    async with AsyncClient(control_plane.address) as client:
        handle = client.operation("op-1")
        async for event in handle.events():
            if event.sequence == 2:
                break
        await asyncio.to_thread(assert_nothing_is_open, control_plane)
        async with handle.events() as stream:
            await anext(stream)
            assert control_plane.open_streams == 1
        await asyncio.to_thread(assert_nothing_is_open, control_plane)
        assert [event async for event in stream] == []


async def test_a_cancelled_task_ends_the_stream(control_plane: ScriptedControlPlane) -> None:
    control_plane.scripts += [WAITS, WAITS, [events(4)]]
    async with AsyncClient(control_plane.address) as client:
        handle = client.operation("op-1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await handle.result()
        await asyncio.to_thread(assert_nothing_is_open, control_plane)

        stream = handle.events()
        came_to_silence = asyncio.Event()

        async def read() -> None:
            async for event in stream:
                if event.sequence == 3:
                    came_to_silence.set()

        task = asyncio.create_task(read())
        await came_to_silence.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(assert_nothing_is_open, control_plane)
        assert (await anext(stream)).sequence == 4


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal's process has it: one in the background was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_stream_and_loses_nothing(control_plane: ScriptedControlPlane) -> None:
    control_plane.scripts += [WAITS, [events(4)]]
    main = threading.get_ident()
    with Client(control_plane.address) as client:
        stream = client.operation("op-1").events()
        assert [next(stream).sequence for _ in range(3)] == [1, 2, 3]
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert_nothing_is_open(control_plane)
        assert next(stream).sequence == 4


def test_another_thread_may_close_the_stream(control_plane: ScriptedControlPlane) -> None:
    control_plane.scripts += [WAITS]
    with Client(control_plane.address) as client:
        stream = client.operation("op-1").events()
        threading.Timer(0.3, stream.close).start()
        assert [event.sequence for event in stream] == [1, 2, 3]
        assert_nothing_is_open(control_plane)


def test_result_waits_no_longer_than_it_is_told(control_plane: ScriptedControlPlane) -> None:
    control_plane.scripts += [WAITS]
    with Client(control_plane.address) as client:
        with pytest.raises(TimeoutError) as caught:
            client.operation("op-1").result(timeout=0.3)
        assert isinstance(caught.value, DeadlineExceeded)
        assert "op-1" in str(caught.value)
        assert_nothing_is_open(control_plane)


AWAY = EverstepError(Reason.DATABASE_UNAVAILABLE, "the database does not answer")


async def test_unary_calls_are_said_again_for_a_while(control_plane: ScriptedControlPlane) -> None:
    control_plane.refusals += [AWAY, AWAY]
    with Client(control_plane.address) as client:
        assert client.operation("op-1").describe().state is OperationState.RUNNING
        control_plane.refusals += [AWAY] * 10
        with pytest.raises(ServiceUnavailable):
            client.operation("op-1").describe()
    assert len(control_plane.refusals) == 6
    control_plane.refusals.clear()
    control_plane.refusals += [AWAY, AWAY]
    async with AsyncClient(control_plane.address) as asynchronous:
        described = await asynchronous.operation("op-1").describe()
        assert described.state is OperationState.RUNNING


def test_no_control_plane_is_said_in_one_line() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServiceUnavailable, match="everstep up"):
        client.trainers()
