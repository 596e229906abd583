"""The trainer put together: journal, store, trainings, server, registration."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from everstep.errors import EverstepError
from everstep.rpc import serving
from everstep.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
from trainer_service.child_process import SpareChildren
from trainer_service.journal import Journal
from trainer_service.preemption import PreemptionNotice
from trainer_service.registration import Registration
from trainer_service.servicer import TrainerServicer
from trainer_service.settings import TrainerSettings
from trainer_service.spool import Spool
from trainer_service.trainings import Trainings

_log = structlog.get_logger(__name__)

SERVICE = "everstep.trainer.v1.TrainerService"

#: Seconds that watchers have to read an attempt's last word before a stop cuts them off.
LAST_WORD_SECONDS = 3.0


async def serve(settings: TrainerSettings) -> None:
    """Runs a trainer until SIGTERM, SIGINT or a preemption notice.

    Trainings then stop with a checkpoint, for another trainer to go on.

    Raises:
        EverstepError: ADDRESS_IN_USE, STORE_MISCONFIGURED.
    """
    stop = serving.stop_requested()
    noticing = asyncio.create_task(PreemptionNotice(settings.preemption_file, stop).watch())
    store = open_blob_store(
        settings.store_url,
        settings.store_access_key,
        settings.store_secret_key,
        settings.store_region,
    )
    server = serving.create_server()
    address = serving.bind(server, settings.listen)
    async with AsyncExitStack() as closing:
        closing.callback(noticing.cancel)
        journal = Journal(settings.state_dir / "journal.db")
        closing.callback(journal.close)
        spares = SpareChildren(settings.spare_children)
        closing.push_async_callback(spares.close)
        spool = Spool(settings.state_dir / "spool")
        await _set_up_store(settings, journal, store)
        trainings = Trainings(settings, store, journal, spares, spool)
        await trainings.recover()
        health = serving.add_health(server)
        if settings.reflection:
            serving.add_reflection(server, [SERVICE])
        add_TrainerServiceServicer_to_server(TrainerServicer(trainings, settings.capacity), server)
        await server.start()
        await serving.set_serving(health, [SERVICE], True)
        spares.refill()
        registration = Registration(settings, address, trainings)
        announcing = asyncio.create_task(registration.run()) if settings.control_plane else None
        print(f"listening on {address}", flush=True)
        await stop.wait()

        _log.info("stopping; trainings are checkpointed")
        await serving.set_serving(health, [SERVICE], False)
        trainings.draining = True
        if announcing is not None:
            # It goes on announcing itself, too: a stop may take longer than a lease.
            await registration.announce_draining()
        await trainings.drain()
        if announcing is not None:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
        await server.stop(LAST_WORD_SECONDS)


async def _set_up_store(settings: TrainerSettings, journal: Journal, store: BlobStore) -> None:
    """Makes a store of an empty folder, unless someone knows what would be in it."""
    remembered = await asyncio.to_thread(journal.attempts)
    if settings.control_plane or remembered:
        return
    try:
        await asyncio.to_thread(store.set_up)
    except EverstepError as error:
        _log.warning("the store is not set up", reason=error.reason, message=error.message)
