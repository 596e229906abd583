"""What a schedule runs in: clock, chance and machinery in the place of the real ones."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import structlog
from google.protobuf.internal import well_known_types

import checkpoint_store.blob_download
import checkpoint_store.blob_upload
import checkpoint_store.long_uploads
import control_plane.dispatcher
import control_plane.garbage
import control_plane.server
import control_plane.stop_relay
import control_plane.trainer_channels
import everstep.calls.async_connection
import trainer_service.preflight
import trainer_service.registration
import trainer_service.server
import trainer_service.store_patience
import trainer_service.training_worker
import trainer_service.uploader
from checkpoint_store.long_uploads import LATEST_SECONDS, LONG_SECONDS, REUSE_SECONDS, SPARED
from checkpoint_store.safetensors_layout import TensorSpec
from everstep.control.v1.trainers_pb2 import TrainerEnvironment
from everstep.errors import EverstepError
from tests.simulation.database import SimulatedDatabase
from tests.simulation.loop import PROCESS, SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.servers import SimulatedServer
from tests.simulation.store import EPOCH, Bucket, SimulatedStore
from tests.simulation.training import SimulatedOrchestrator

#: Of what garbage collection and uploads wait for, in a world in which all is over in a minute.
SHRINKING: Final = 1 / 360
_EPOCH_SECONDS: Final = EPOCH.timestamp()


class _Timer:
    """In the place of threading.Timer: an upload here is never long enough for one."""

    daemon = False

    def __init__(self, *_: object) -> None:
        """Nothing is begun."""

    def start(self) -> None:
        """Nothing runs."""

    def cancel(self) -> None:
        """Nothing ran."""


class _Lock:
    """In the place of threading.Lock, where one thread alone comes."""

    def __enter__(self) -> None:
        """There is nobody to wait for."""

    def __exit__(self, *_: object) -> None:
        """There is nobody who waits."""


class _NoNotice:
    """In the place of PreemptionNotice."""

    def __init__(self, *_: object) -> None:
        """Nobody takes this machine away."""

    async def watch(self) -> None:
        """There is nothing to see."""


def in_no_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """In the place of `in_own_thread`."""
    return asyncio.ensure_future(asyncio.to_thread(call))


def start_no_thread(thread: threading.Thread) -> None:
    """In the place of `Thread.start`: when a thread runs is not for the seed to say."""
    raise AssertionError(f"{thread} is not simulated")


def one_by_one(_parallelism: int, items: Iterable[Any], call: Callable[[Any], Any]) -> list[Any]:
    """In the place of `in_parallel`."""
    return [call(item) for item in items]


@contextmanager
def simulated(loop: SimulatedLoop, network: Network, bucket: Bucket, seed: int) -> Iterator[None]:
    """The real services' code finds simulated time, chance, network, store and database."""
    chance = random.Random(seed)
    environment = TrainerEnvironment(torch_version="2.13.0", device="cpu", threads=1)

    class SimulatedDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return (EPOCH + timedelta(seconds=loop.time())).astimezone(tz)

    def set_current_time(message: Any) -> None:
        message.FromMicroseconds(int((_EPOCH_SECONDS + loop.time()) * 1_000_000))

    def open_store(*_: object) -> SimulatedStore:
        return SimulatedStore(bucket)

    def stop_requested() -> Any:
        process = PROCESS.get()
        assert process is not None
        return process.stop

    def bind(server: SimulatedServer, address: str) -> str:
        server.bind(address)
        return address

    async def set_serving(*_: object) -> None:
        """Nobody asks for health here."""

    serving = SimpleNamespace(
        stop_requested=stop_requested,
        create_server=lambda: SimulatedServer(network.servers),
        bind=bind,
        add_health=lambda _server: None,
        set_serving=set_serving,
    )
    locks = SimpleNamespace(Lock=_Lock, Timer=_Timer)
    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", loop.time),
        (time, "time", lambda: _EPOCH_SECONDS + loop.time()),
        (time, "time_ns", lambda: int((_EPOCH_SECONDS + loop.time()) * 1e9)),
        (time, "sleep", loop.block),
        (threading.Thread, "start", start_no_thread),
        (secrets, "token_hex", lambda count=16: chance.randbytes(count).hex()),
        (secrets, "token_bytes", chance.randbytes),
        (uuid, "uuid4", lambda: uuid.UUID(bytes=chance.randbytes(16), version=4)),
        (random, "random", chance.random),
        (random, "uniform", chance.uniform),
        (well_known_types.Timestamp, "GetCurrentTime", set_current_time),
        (checkpoint_store.blob_upload, "datetime", SimulatedDatetime),
        (checkpoint_store.blob_upload, "in_parallel", one_by_one),
        (checkpoint_store.blob_download, "in_parallel", one_by_one),
        (checkpoint_store.long_uploads, "threading", locks),
        # Fewer rounds: what wakes the dispatcher wakes it all the same.
        (control_plane.dispatcher, "ROUND_SECONDS", 1.6),
        # An hour of grace is ten seconds here, and what stands in relation to it shrinks alike.
        (control_plane.garbage, "DEFAULT_GRACE", timedelta(hours=1) * SHRINKING),
        (checkpoint_store.blob_upload, "REUSE_SECONDS", REUSE_SECONDS * SHRINKING),
        (checkpoint_store.long_uploads, "LONG_SECONDS", LONG_SECONDS * SHRINKING),
        (checkpoint_store.long_uploads, "LATEST_SECONDS", LATEST_SECONDS * SHRINKING),
        (checkpoint_store.long_uploads, "SPARED", SPARED * SHRINKING),
        (control_plane.garbage, "datetime", SimulatedDatetime),
        (control_plane.trainer_channels, "open_channel", network.open_channel),
        (control_plane.server, "open_blob_store", open_store),
        (control_plane.server, "serving", serving),
        (control_plane.server, "Database", SimulatedDatabase),
        (control_plane.server, "print", lambda *_, **__: None),
        (everstep.calls.async_connection, "open_channel", network.open_channel),
        (trainer_service.preflight, "datetime", SimulatedDatetime),
        (trainer_service.preflight, "_PROBE", TensorSpec("probe", "U8", (64,))),
        (trainer_service.registration, "open_channel", network.open_channel),
        (trainer_service.registration, "environment", lambda _settings: environment),
        (trainer_service.server, "open_blob_store", open_store),
        (trainer_service.server, "serving", serving),
        (trainer_service.server, "PreemptionNotice", _NoNotice),
        (trainer_service.server, "print", lambda *_, **__: None),
        (trainer_service.store_patience, "in_own_thread", in_no_thread),
        (trainer_service.training_worker, "LocalTrainingOrchestrator", SimulatedOrchestrator),
        (trainer_service.uploader, "datetime", SimulatedDatetime),
    ]

    def told(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> Any:
        process = PROCESS.get()
        error = entry.get("exc_info")
        error = sys.exc_info()[1] if error is True else error
        text = (
            f"{process.name if process else 'nobody'} logs: {entry['event']}: "
            f"{type(error).__name__}: {error}"
        )
        network.note(text)
        if not isinstance(error, EverstepError):
            # An error that the code does not foresee, though it goes on.
            loop.failures.append(text)
        raise structlog.DropEvent

    SimulatedOrchestrator.draw = chance
    SimulatedOrchestrator.working = {}
    collecting = gc.isenabled()
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value, create=name == "print"))
        structlog.configure(
            processors=[told],
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=False,
        )
        # What is collected, and when, would be another order of callbacks each time.
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()
            structlog.reset_defaults()
