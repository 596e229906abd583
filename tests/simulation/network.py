"""gRPC without a wire: channels and servers whose messages a simulated network carries, or not.

The stubs, servicers, messages and the interceptor are the real ones; every message is made bytes
and parsed again. Within one call messages keep their order, as on an HTTP/2 stream; between calls
they come in any.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from tests.simulation.loop import PROCESS, Process, SimulatedLoop
from tests.simulation.servers import Aborted, CallContext, Metadata, SimulatedServer, bare_error

#: Seconds after which a peer that says nothing, not even to a ping, is given up.
KEEPALIVE_SECONDS: Final = 40.0
#: Messages of a stream on their way; then its sender waits.
WINDOW: Final = 16
#: A copy of a call comes so much later at most.
COPY_SECONDS: Final = 0.5
#: Where messages are that no process has received yet.
_OUTSIDE: Final = Context()
#: What may be said twice by a client that has heard nothing.
COPIED: Final = frozenset(
    {
        "RegisterTrainer",
        "ForgetTraining",
        "CancelTraining",
        "CheckpointTraining",
        "CreateOperation",
        "ResumeOperation",
        "StartTraining",
        "ResumeTraining",
    }
)


@dataclass
class Link:
    """Between two machines, both ways."""

    #: The longest way, in seconds.
    slowest: float = 0.005
    #: New calls are refused.
    refused: bool = False
    #: Nothing comes through; it comes when the link is there again.
    held: bool = False
    #: The share of calls to which something happens.
    lossy: float = 0.0
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Network:
    """Links by the names of their ends, and servers by address."""

    def __init__(
        self, loop: SimulatedLoop, draw: random.Random, note: Callable[[str], None]
    ) -> None:
        self.loop = loop
        self.draw = draw
        self.note = note
        self.links: dict[tuple[str, str], Link] = {}
        self.servers: dict[str, SimulatedServer] = {}
        self.calls: dict[Call, None] = {}

    def link(self, one: str, other: str) -> Link:
        """The link between two machines."""
        return self.links.setdefault((min(one, other), max(one, other)), Link())

    def open_channel(self, address: str, _more: object = ()) -> Any:
        """In the place of `everstep.rpc.options.open_channel`."""
        return SimulatedChannel(self, address)

    def died(self, process: Process) -> None:
        """The connections of a process that was killed are reset."""
        for call in list(self.calls):
            if process in (call.client, call.server):
                call.break_off()

    def cut(self, one: str, other: str) -> None:
        """Resets every connection between two machines."""
        for call in list(self.calls):
            if {one, other} == {call.client.name, call.server_name}:
                call.break_off()

    def half_open(self, one: str, other: str) -> None:
        """Connections between two machines are dead, and neither end knows."""
        for call in list(self.calls):
            if {one, other} == {call.client.name, call.server_name}:
                call.fall_silent()

    def heal(self, one: str, other: str) -> None:
        """A link is as at the beginning; what was held comes."""
        link = self.link(one, other)
        waiting, fresh = link.waiting, Link()
        link.slowest, link.waiting = fresh.slowest, fresh.waiting
        link.refused, link.held, link.lossy = fresh.refused, fresh.held, fresh.lossy
        for send in waiting:
            send()


class SimulatedChannel:
    """As grpc.aio.Channel, as far as stubs and AsyncConnection use one."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address

    async def __aenter__(self) -> SimulatedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, _grace: float | None = None) -> None:
        """Ends nothing by itself: callers cancel what they opened."""

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def ask(request: Any, timeout: float | None = None, **_: object) -> Any:  # noqa: ASYNC109
            call = Call(self._network, self._address, path, request_serializer(request))
            call.begin(timeout)
            try:
                while (message := await call.next_message()) is not None:
                    return response_deserializer(message)
                raise bare_error(grpc.StatusCode.INTERNAL, "there was no answer")
            finally:
                call.cancel()

        return ask

    def unary_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., SimulatedStream]:
        def open_stream(request: Any, timeout: float | None = None, **_: object) -> SimulatedStream:
            call = Call(self._network, self._address, path, request_serializer(request))
            call.begin(timeout)
            return SimulatedStream(call, response_deserializer)

        return open_stream


class SimulatedStream:
    """As grpc.aio.UnaryStreamCall."""

    def __init__(self, call: Call, parse: Callable[[bytes], Any]) -> None:
        self._call = call
        self._parse = parse

    async def read(self) -> Any:
        message = await self._call.next_message()
        return grpc.aio.EOF if message is None else self._parse(message)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self._call.next_message()) is not None:
            yield self._parse(message)

    async def initial_metadata(self) -> Metadata:
        return await self._call.initial_metadata()

    def cancel(self) -> bool:
        self._call.cancel()
        return True


class Call:
    """One call on its way: a request, messages back, and an end."""

    def __init__(self, network: Network, address: str, path: str, request: bytes) -> None:
        client = PROCESS.get()
        assert client is not None, "calls are made by processes"
        self.network, self.client = network, client
        self.server: Process | None = None
        self.server_name = address.partition(":")[0]
        self.method = path.rpartition("/")[2]
        self._address, self._path, self._request = address, path, request
        self._link = network.link(client.name, self.server_name)
        #: What has come to the client.
        self._messages: deque[bytes] = deque()
        self._metadata: Metadata | None = None
        self._outcome: grpc.aio.AioRpcError | None = None
        self.ended = False
        self._silent = False
        self._changed = asyncio.Event()
        self._handling: asyncio.Task[None] | None = None
        self._last_to_client = self._last_to_server = 0.0
        self._under_way = 0
        self._room = asyncio.Event()

    def begin(self, seconds: float | None) -> None:
        """Sends the request."""
        if not self.client.alive:
            return
        self.network.calls[self] = None
        draw, loop = self.network.draw, self.network.loop
        if seconds is not None:
            loop.call_later(seconds, self._expire)
        if self._link.lossy and draw.random() < self._link.lossy:
            self._suffer()
            return
        self._send(self._arrive, towards_client=False)

    async def next_message(self) -> bytes | None:
        """What comes next; None at the end.

        Raises:
            grpc.aio.AioRpcError: When it ended with an error.
        """
        while not self._messages:
            if self.ended:
                if self._outcome is not None:
                    raise self._outcome
                return None
            self._changed.clear()
            await self._changed.wait()
        self._under_way -= 1
        self._room.set()
        return self._messages.popleft()

    async def initial_metadata(self) -> Metadata:
        """What the server said before its first message; nothing where the call ends without."""
        while self._metadata is None and not self.ended:
            self._changed.clear()
            await self._changed.wait()
        return self._metadata or ()

    def cancel(self) -> None:
        """The client wants no more."""
        if not self.ended and self.client.alive:
            self._end(bare_error(grpc.StatusCode.CANCELLED, "cancelled here"))
            self._send(self._stop_handling, towards_client=False)

    def break_off(self) -> None:
        """The connection is reset: both ends are told, each in its time."""
        lost = bare_error(grpc.StatusCode.UNAVAILABLE, "connection reset")
        self._silent = True
        loop, draw = self.network.loop, self.network.draw
        for process, action in (
            (self.client, lambda: self._end(lost)),
            (self.server, self._stop_handling),
        ):
            if process is not None and process.alive:
                loop.call_later(draw.uniform(0, 0.01), action, context=process.context)
        self.network.calls.pop(self, None)

    def fall_silent(self) -> None:
        """The connection is dead; each end finds out by its keepalive."""
        self._silent = True
        self.network.loop.call_later(KEEPALIVE_SECONDS, self.break_off, context=self.client.context)

    def _suffer(self) -> None:
        """The request is lost, or the answer; or it was sent twice; or the stream breaks early."""
        draw, loop = self.network.draw, self.network.loop
        what = draw.choice(("request lost", "answer lost", "sent twice", "breaks"))
        if what == "sent twice" and self.method not in COPIED:
            what = "answer lost"
        self.network.note(f"{self.client.name} {self.method} to {self.server_name}: {what}")
        if what == "request lost":
            loop.call_later(draw.uniform(0, 0.2), self.break_off)
            return
        if what == "sent twice":
            copy = Call(self.network, self._address, self._path, self._request)
            copy._link = Link(slowest=COPY_SECONDS)
            self.network.calls[copy] = None
            copy._send(copy._arrive, towards_client=False)
            loop.call_later(draw.uniform(COPY_SECONDS, 2 * COPY_SECONDS), copy.break_off)
        elif what == "breaks":
            loop.call_later(draw.uniform(0, 2), self.break_off)
        self._send(self._arrive, towards_client=False)
        if what == "answer lost":
            self._link = Link(held=True)
            loop.call_later(draw.uniform(0.02, 0.3), self.break_off)

    def _arrive(self) -> None:
        """The request is at the machine of the server."""
        server = self.network.servers.get(self._address)
        if server is None or self._link.refused or not server.process.alive:
            refused = bare_error(grpc.StatusCode.UNAVAILABLE, "connection refused")
            self._send(lambda: self._end(refused), towards_client=True)
            return
        self.server = server.process
        self.network.loop.call_soon(self._handle, server, context=server.process.context)

    def _handle(self, server: SimulatedServer) -> None:
        if self.server is not None and self.server.alive:
            self._handling = asyncio.ensure_future(self._serve(server))
            server.handling[self._handling] = None
            self._handling.add_done_callback(lambda task: server.handling.pop(task, None))

    async def _serve(self, server: SimulatedServer) -> None:
        outcome: grpc.aio.AioRpcError | None = None
        try:
            handler = await server.handler(self._path)
            request = handler.request_deserializer(self._request)
            context = CallContext(self._open)
            if handler.unary_unary is not None:
                answer = await handler.unary_unary(request, context)
                await self._say(handler.response_serializer(answer))
            else:
                async for message in handler.unary_stream(request, context):
                    await self._say(handler.response_serializer(message))
        except Aborted as aborted:
            outcome = aborted.error
        except asyncio.CancelledError:
            gone = bare_error(grpc.StatusCode.UNAVAILABLE, "the server stops")
            self._send(lambda: self._end(gone), towards_client=True)
            raise
        self._send(lambda: self._end(outcome), towards_client=True)

    async def _say(self, message: bytes) -> None:
        while self._under_way >= WINDOW:
            self._room.clear()
            await self._room.wait()
        self._under_way += 1
        self._send(lambda: self._take(message), towards_client=True)

    def _open(self, metadata: Metadata) -> None:
        self._send(lambda: self._opened(metadata), towards_client=True)

    def _opened(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._changed.set()

    def _take(self, message: bytes) -> None:
        if not self.ended:
            self._messages.append(message)
            self._changed.set()

    def _end(self, outcome: grpc.aio.AioRpcError | None) -> None:
        if self.ended:
            return
        self.ended = True
        self._outcome = outcome
        self._changed.set()
        self.network.calls.pop(self, None)

    def _expire(self) -> None:
        if not self.ended:
            self._end(bare_error(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded"))
            self._send(self._stop_handling, towards_client=False)

    def _stop_handling(self) -> None:
        if self._handling is not None:
            self._handling.cancel()

    def _send(self, action: Callable[[], None], *, towards_client: bool) -> None:
        sender, receiver = self.client, self.server
        if towards_client:
            sender, receiver = self.server or self.client, self.client
        if not sender.alive or self._silent:
            return
        if self._link.held:
            self._link.waiting.append(lambda: self._send(action, towards_client=towards_client))
            return
        loop = self.network.loop
        arrival = loop.time() + self.network.draw.uniform(0.0002, self._link.slowest)
        if towards_client:
            arrival = self._last_to_client = max(arrival, self._last_to_client + 1e-6)
        else:
            arrival = self._last_to_server = max(arrival, self._last_to_server + 1e-6)
        # A request comes to a machine, of which nobody knows yet who listens there.
        context = _OUTSIDE if receiver is None else receiver.context
        loop.call_at(arrival, self._deliver, action, receiver, context=context)

    def _deliver(self, action: Callable[[], None], receiver: Process | None) -> None:
        if not self._silent and (receiver is None or receiver.alive):
            action()
