"""Connections to trainers, one for each address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from everstep.rpc.options import open_channel
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub

if TYPE_CHECKING:
    from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

#: Seconds a trainer has for a question on the side.
SIDE_CALL_SECONDS: Final = 3.0


class TrainerChannels:
    """Opens a channel when an address is first used, and keeps it."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, address: str) -> TrainerServiceAsyncStub:
        """The trainer at `host:port`."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(address)
        return TrainerServiceStub(channel)

    async def close(self) -> None:
        """Ends every call and closes every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
