"""Those who watch: many streams in one process, over several connections.

`python -m benchmarks.progress.watchers '{"address": ..., "operation_id": ..., "watchers": ...,
"after": ..., "ready": ..., "last": ..., "timed": ...}'`
Says when all have come to sequence `ready`; then, when all have come to `last`, what was seen.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from benchmarks.progress.processes import say
from everstep.control.v1.operations_pb2 import WatchOperationRequest
from everstep.control.v1.operations_pb2_grpc import OperationServiceStub
from everstep.rpc.options import CHANNEL_OPTIONS

#: Of one connection; a server takes 256.
STREAMS_PER_CHANNEL: Final = 125


@dataclass
class Seen:
    """What all watchers of this process saw after `ready`."""

    events: int = 0
    messages: int = 0
    #: When the first one called, and when the last one had it all, by time.monotonic().
    began: float = 0.0
    ended: float = 0.0
    #: Seconds from the moment that an event was said to the moment that it was here, of each.
    delays: list[float] = field(default_factory=list)


class Watchers:
    """The streams of one process.

    Args:
        asked: See the module.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._seen = Seen()
        self._waiting = asked["watchers"]
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Watches to the end of what is asked for."""
        async with AsyncExitStack() as channels, asyncio.TaskGroup() as tasks:
            stub = None
            for number in range(self._asked["watchers"]):
                if stub is None or number % STREAMS_PER_CHANNEL == 0:
                    channel = grpc.aio.insecure_channel(
                        self._asked["address"],
                        # Else all channels to one address share a connection.
                        options=[*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)],
                    )
                    await channels.enter_async_context(channel)
                    await channel.channel_ready()
                    stub = OperationServiceStub(channel)
                    self._seen.began = self._seen.began or time.monotonic()
                tasks.create_task(self._watch(stub))
            await self._ready.wait()
            say(ready=True)
        say(**vars(self._seen))

    async def _watch(self, stub: Any) -> None:
        asked, seen = self._asked, self._seen
        cursor, ready, timed = asked["after"], asked["ready"], asked["timed"]
        call = stub.WatchOperation(
            WatchOperationRequest(operation_id=asked["operation_id"], after_sequence=cursor)
        )
        if cursor >= ready:
            self._arrived()
        try:
            async for response in call:
                now = time.time()
                seen.messages += cursor >= ready and len(response.batch.events) > 0
                for event in response.batch.events:
                    if event.sequence != cursor + 1:
                        raise RuntimeError(f"sequence {event.sequence} came after {cursor}")
                    cursor += 1
                    if cursor > ready:
                        seen.events += 1
                        if timed:
                            seen.delays.append(now - event.time.ToNanoseconds() / 1e9)
                    elif cursor == ready:
                        self._arrived()
                if cursor >= asked["last"]:
                    seen.ended = time.monotonic()
                    return
        finally:
            call.cancel()
        raise RuntimeError(f"the stream ended after {cursor}")

    def _arrived(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._ready.set()


if __name__ == "__main__":
    asyncio.run(Watchers(json.loads(sys.argv[1])).run())
