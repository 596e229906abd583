"""A bare grpc.aio stream: the same messages to everyone who watches, and nothing else.

`python -m benchmarks.progress.bare_server '{"events": ..., "rate": ..., "batch": ...}'`
No storage, no interceptor, no look at the request; messages are bytes before the clock starts,
where they are not paced. It waits for a line as the scripted trainer does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from benchmarks.progress import words
from benchmarks.progress.processes import say, stdin_line
from everstep.control.v1.operations_pb2 import EventBatch, WatchOperationResponse
from everstep.rpc import serving
from everstep.rpc.options import SERVER_OPTIONS

OPERATION_ID: Final = "op-bare"
Context = grpc.aio.ServicerContext[Any, Any]


class BareStream:
    """Every call gets the same messages.

    Args:
        events: After the first one, which comes before the clock is started.
        rate: Events in a second; 0: as fast as each stream takes them.
        batch: Events in a message.
    """

    def __init__(self, events: int, rate: float, batch: int) -> None:
        self._rate = rate
        self._first = _message(words.BEGIN_INDEX, 1)
        self._begin = asyncio.Event()
        self._numbers = range(words.BEGIN_INDEX + 1, words.BEGIN_INDEX + events + 1, batch)
        self._said = asyncio.Event()
        self._messages: list[bytes] = []
        if not rate:
            end = words.BEGIN_INDEX + events + 1
            self._messages = [_message(first, min(batch, end - first)) for first in self._numbers]

    async def begin(self) -> None:
        """Streams that wait go on."""
        began = time.monotonic()
        self._begin.set()
        say(began=began)
        for count, number in enumerate(self._numbers if self._rate else (), start=1):
            await asyncio.sleep(began + count / self._rate - time.monotonic())
            self._messages.append(_message(number, 1))
            self._said.set()
            self._said = asyncio.Event()

    async def watch(self, _request: bytes, _context: Context) -> AsyncIterator[bytes]:
        """One stream."""
        yield self._first
        await self._begin.wait()
        sent = 0
        while sent < len(self._numbers):
            while sent == len(self._messages):
                await self._said.wait()
            yield self._messages[sent]
            sent += 1


def _message(number: int, count: int) -> bytes:
    events = [words.entry(OPERATION_ID, each) for each in range(number, number + count)]
    return WatchOperationResponse(batch=EventBatch(events=events)).SerializeToString()


async def serve(asked: dict[str, Any]) -> None:
    """Serves until the process is killed."""
    bare = BareStream(asked["events"], asked["rate"], asked["batch"])
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(bare.watch)
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "everstep.control.v1.OperationService", {"WatchOperation": handler}
            )
        ]
    )
    address = serving.bind(server, "127.0.0.1:0")
    await server.start()
    print(f"listening on {address}", flush=True)
    await asyncio.to_thread(stdin_line)
    await bare.begin()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
