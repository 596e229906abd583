"""The control plane put together: database, store, domain, servicers, dispatcher, servers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

import structlog

from checkpoint_store import DEFAULT_RETRY_SECONDS, open_blob_store
from checkpoint_store.blobs import BlobStore
from checkpoint_store.sweeps import RETRY_SECONDS
from control_plane.checkpoints import Checkpoints
from control_plane.clock_watch import ClockWatch
from control_plane.compaction import LogCompactor
from control_plane.dashboard.server import Dashboard, listen
from control_plane.database.session import Database
from control_plane.dispatcher import Dispatcher
from control_plane.event_log import EventLog
from control_plane.limits import WatchLimit
from control_plane.operations import Operations
from control_plane.servicers.checkpoints import CheckpointServicer
from control_plane.servicers.operations import OperationServicer
from control_plane.servicers.trainers import TrainerRegistryServicer
from control_plane.settings import ControlPlaneSettings
from control_plane.store_set_up import set_up_store
from control_plane.trainers import Trainers
from everstep.control.v1.checkpoints_pb2_grpc import add_CheckpointServiceServicer_to_server
from everstep.control.v1.operations_pb2_grpc import add_OperationServiceServicer_to_server
from everstep.control.v1.trainers_pb2_grpc import add_TrainerRegistryServiceServicer_to_server
from everstep.rpc import serving

_log = structlog.get_logger(__name__)

SERVICES: Final = (
    "everstep.control.v1.OperationService",
    "everstep.control.v1.CheckpointService",
    "everstep.control.v1.TrainerRegistryService",
)


async def serve(settings: ControlPlaneSettings) -> None:
    """Runs a control plane until SIGTERM or SIGINT; trainings go on without it.

    Raises:
        EverstepError: ADDRESS_IN_USE, DATABASE_UNAVAILABLE, STORE_MISCONFIGURED.
    """
    stop = serving.stop_requested()
    store = _open_store(settings, settings.store_url)
    sweeping_store = _open_store(settings, settings.store_url, RETRY_SECONDS)
    public_store = _open_store(settings, settings.store_public_url or settings.store_url)
    server = serving.create_server()
    address = serving.bind(server, settings.listen)
    dashboard_socket = listen(settings.dashboard_listen) if settings.dashboard_listen else None
    async with AsyncExitStack() as closing:
        database = Database(settings.database_url)
        closing.callback(database.close)
        await database.migrate()
        await set_up_store(database, store)
        log = EventLog(database)
        checkpoints = Checkpoints(database, store, public_store)
        dispatcher = Dispatcher(
            database,
            log,
            checkpoints,
            settings.instance,
            settings.lease_seconds,
            settings.unreachable_seconds,
        )
        closing.push_async_callback(dispatcher.close)
        operations = Operations(database, log, dispatcher.wake, settings.max_queued)
        watches = WatchLimit(settings.max_watches)
        add_OperationServiceServicer_to_server(
            OperationServicer(operations, log, dispatcher, checkpoints, watches), server
        )
        add_CheckpointServiceServicer_to_server(
            CheckpointServicer(database, store, sweeping_store, checkpoints), server
        )
        add_TrainerRegistryServiceServicer_to_server(
            TrainerRegistryServicer(Trainers(database, settings.lease_seconds, dispatcher.wake)),
            server,
        )
        health = serving.add_health(server)
        if settings.reflection:
            serving.add_reflection(server, SERVICES)
        await server.start()
        await serving.set_serving(health, SERVICES, True)
        compactor = LogCompactor(database, settings.keep_events, settings.keep_events_days)
        clock = ClockWatch(database, settings.lease_seconds)
        working = [
            asyncio.create_task(work) for work in (dispatcher.run(), compactor.run(), clock.run())
        ]
        dashboard = None
        said = f"listening on {address}"
        if dashboard_socket is not None:
            dashboard = Dashboard(
                dashboard_socket,
                settings.dashboard_allowed_hosts,
                database,
                log,
                operations,
                checkpoints,
                dispatcher,
                settings.stop_grace_seconds,
            )
            dashboard.start()
            said += f"\ndashboard on {dashboard.url}"
        print(said, flush=True)
        await stop.wait()

        _log.info("stopping; trainings go on")
        await serving.set_serving(health, SERVICES, False)
        log.drain()
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        if dashboard is not None:
            await dashboard.stop()
        await server.stop(settings.stop_grace_seconds)


def _open_store(
    settings: ControlPlaneSettings, url: str, retry_seconds: float = DEFAULT_RETRY_SECONDS
) -> BlobStore:
    return open_blob_store(
        url,
        settings.store_access_key,
        settings.store_secret_key,
        settings.store_region,
        retry_seconds,
    )
