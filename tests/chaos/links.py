"""TCP proxies between the services, which can cut, refuse, hold back and slow what goes through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

_CHUNK_BYTES: Final = 64 * 1024


class Link:
    """One way from a service to another: what connects to `address` reaches `target`.

    Its methods may be called from any thread.

    Args:
        name: As in `trainer-1 to store`.
        network: Whose loop it runs in.
    """

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        #: host:port that clients of this link connect to.
        self.address = ""
        #: host:port behind it; empty: nobody is there.
        self.target = ""
        self._network = network
        self._refusing = False
        self._delay_seconds = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    def cut(self) -> int:
        """Resets every connection that is open; how many there were."""
        return self._network.run(self._cut())

    def refuse(self) -> None:
        """As cut, and every further connection, too, until healed."""
        self._refusing = True
        self.cut()

    def hold(self) -> None:
        """Connections stay open and nothing goes through, until healed."""
        self._network.call(self._flowing.clear)

    def slow(self, seconds: float) -> None:
        """Whatever goes through takes so long each time, until healed."""
        self._delay_seconds = seconds

    def heal(self) -> None:
        """All goes through again, what was held back first."""
        self._refusing = False
        self._delay_seconds = 0.0
        self._network.call(self._flowing.set)

    async def listen(self) -> None:
        """Opens the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """Ends the port and all connections."""
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def _cut(self) -> int:
        connections = len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        return connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing or not self.target:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()
            self._writers -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._flowing.wait()
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            writer.write(data)
            await writer.drain()
        await self._flowing.wait()
        if writer.can_write_eof():
            writer.write_eof()


class Network:
    """The loop that all links of a cluster run in, in a thread of its own; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for link in self._links:
            self.run(link.close())
        self.run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, name: str, target: str = "") -> Link:
        """A link that listens."""
        link = Link(name, self)
        link.target = target
        self.run(link.listen())
        self._links.append(link)
        return link

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns, run in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[[], object]) -> None:
        """Calls it in the loop, soon."""
        self._loop.call_soon_threadsafe(function)

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
