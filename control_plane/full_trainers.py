"""Trainers that refused work for want of room: asked until they have some."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from control_plane import times
from control_plane.database import trainers
from control_plane.database.session import Database
from control_plane.trainer_channels import SIDE_CALL_SECONDS, TrainerChannels
from everstep.trainer.v1.trainer_pb2 import ListTrainingsRequest


class FullTrainers:
    """Those that have no room though the database thinks so: they serve other callers, too.

    Args:
        database: Knows where they are.
        channels: To ask them.
        has_room: Called when one has room again.
    """

    def __init__(
        self, database: Database, channels: TrainerChannels, has_room: Callable[[], None]
    ) -> None:
        self._database = database
        self._channels = channels
        self._has_room = has_room
        self._full: set[str] = set()

    @property
    def ids(self) -> frozenset[str]:
        """Who they are."""
        return frozenset(self._full)

    def add(self, trainer_id: str) -> None:
        """One has refused."""
        self._full.add(trainer_id)

    async def ask_round(self) -> None:
        """Asks each; one that is gone is left out from then on."""
        for trainer_id in tuple(self._full):
            trainer = await self._database.read(trainers.find, trainer_id)
            if trainer is None or not trainer.alive(times.now()):
                self._full.discard(trainer_id)
                continue
            try:
                answer = await self._channels.stub(trainer.address).ListTrainings(
                    ListTrainingsRequest(), timeout=SIDE_CALL_SECONDS
                )
            except grpc.aio.AioRpcError:
                continue
            running = sum(not training.finished for training in answer.trainings)
            if running < answer.capacity:
                self._full.discard(trainer_id)
                self._has_room()
