"""A folder becomes a store only while nothing is known that would be in it."""

from __future__ import annotations

import asyncio

import structlog

from checkpoint_store.blobs import BlobStore
from control_plane.database import checkpoints
from control_plane.database.session import Database
from everstep.errors import EverstepError

_log = structlog.get_logger(__name__)


async def set_up_store(database: Database, store: BlobStore) -> None:
    """Makes a store of an empty folder, unless checkpoints are listed: its disk is away then.

    Trainers that have a control plane leave it to this one.
    """
    listed, _, _ = await database.read(checkpoints.totals)
    if listed:
        return
    try:
        await asyncio.to_thread(store.set_up)
    except EverstepError as error:
        _log.warning("the store is not set up", reason=error.reason, message=error.message)
