"""A training process: started by exec, spoken to over a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Final

from trainer_service.cgroups import memory_kills
from trainer_service.child.heartbeat import STACKS_SIGNAL, Beat
from trainer_service.child.pipe import (
    HEADER,
    MAX_FRAME_BYTES,
    PROGRESS,
    Ready,
    Train,
    Word,
    decode_word,
    encode_word,
)
from trainer_service.death_causes import death_cause
from trainer_service.heartbeat_memory import HeartbeatMemory

#: How torch uses the processor and its memory, unless the trainer's environment says otherwise; it
#: changes no bits.
TRAINING_ENVIRONMENT: Final = {
    # Torch's threads wait for each other by turning round and round, up to a millisecond by
    # default. An upload beside them then costs several times what it takes, in turns: this is long
    # enough for what training waits for.
    "GOMP_SPINCOUNT": "3000",
    # glibc gives large memory back at once, so that the gradients of each step are new pages, a
    # fault each: a quarter of a step's time. What a training had once it keeps.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


class ChildProcess:
    """One training process and the trainer's end of its pipe.

    It is started with exec and never forked: gRPC does not survive a fork.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        connection: socket.socket,
        heartbeat: HeartbeatMemory,
    ) -> None:
        self._process = process
        self._connection = connection
        self._heartbeat = heartbeat
        self._sending = asyncio.Lock()
        self._memory_kills = memory_kills()

    @classmethod
    async def start(cls, module: str = "trainer_service.child") -> ChildProcess:
        """Starts `python -m MODULE`; it imports torch and waits for `Train`."""
        connection, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        heartbeat = HeartbeatMemory()
        descriptors = (child_end.fileno(), heartbeat.descriptor)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *map(str, descriptors),
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
                # The trainer's own stdout belongs to whoever started it.
                stdout=sys.stderr.fileno(),
                process_group=0,
                env={**TRAINING_ENVIRONMENT, **os.environ},
            )
        except BaseException:
            connection.close()
            heartbeat.close()
            raise
        finally:
            child_end.close()
            os.close(heartbeat.descriptor)
        connection.setblocking(False)
        return cls(process, connection, heartbeat)

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def beat(self) -> Beat:
        """What the training loop does now."""
        return self._heartbeat.beat

    async def stacks(self) -> str:
        """Where each thread of the process is, as it says itself."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(STACKS_SIGNAL)
        return await self._heartbeat.stacks(self.process_id)

    async def send(self, word: Word, descriptors: Sequence[int] = ()) -> None:
        """Sends a word; a process that is gone is no error here: `receive` tells."""
        frame = encode_word(word)
        loop = asyncio.get_running_loop()
        async with self._sending:
            if self._connection.fileno() < 0:
                return
            try:
                if descriptors:
                    sent = socket.send_fds(self._connection, [frame[: HEADER.size]], descriptors)
                    frame = frame[sent:]
                await loop.sock_sendall(self._connection, frame)
            except OSError:
                return

    async def train(self, word: Train, slots: Sequence[int]) -> None:
        """Tells the process to begin; the slots' descriptors travel along."""
        self._memory_kills = memory_kills()
        await self.send(word, slots)

    async def receive(self) -> Word | bytes | None:
        """The next word, or a serialised TrainingProgress; None when the process is gone."""
        while True:
            header = await self._read(HEADER.size)
            if header is None:
                return None
            kind, length = HEADER.unpack(header)
            if length > MAX_FRAME_BYTES:
                return None
            payload = await self._read(length)
            if payload is None:
                return None
            if kind == PROGRESS:
                return payload
            word = decode_word(payload)
            if not isinstance(word, Ready):
                return word

    async def wait(self) -> str:
        """Waits for the end of the process and says how it ended, as in `signal SIGKILL`."""
        code = await self._process.wait()
        self._connection.close()
        self._heartbeat.close()
        return death_cause(code, memory_kills() - self._memory_kills)

    def kill(self) -> None:
        """Ends the process at once; what it had said can still be received."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> str:
        """Ends the process at once and waits for it."""
        self.kill()
        return await self.wait()

    async def _read(self, length: int) -> bytes | None:
        loop = asyncio.get_running_loop()
        received = bytearray()
        while len(received) < length:
            try:
                data = await loop.sock_recv(self._connection, min(length - len(received), 1 << 20))
            except (ConnectionResetError, OSError):
                return None
            if not data:
                return None
            received += data
        return bytes(received)


class SpareChildren:
    """Training processes started ahead, so that a training does not wait for imports."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._spares: deque[ChildProcess] = deque()
        self._filling: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self) -> ChildProcess:
        """A process that is ready or nearly so; another one is started in its place."""
        while self._spares:
            child = self._spares.popleft()
            self.refill()
            if child.alive:
                return child
            await child.wait()
        self.refill()
        return await ChildProcess.start()

    def refill(self) -> None:
        """Starts as many processes as are missing, in the background."""
        if len(self._spares) + len(self._filling) < self._count and not self._closed:
            task = asyncio.create_task(self._start_one())
            self._filling.add(task)
            task.add_done_callback(self._filling.discard)

    async def close(self) -> None:
        """Ends the processes that wait."""
        self._closed = True
        await asyncio.gather(*self._filling, return_exceptions=True)
        while self._spares:
            await self._spares.popleft().stop()

    async def _start_one(self) -> None:
        child = await ChildProcess.start()
        if self._closed:
            await child.stop()
        else:
            self._spares.append(child)
