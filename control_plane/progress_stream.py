"""A trainer's stream, read ahead a little, so that many events are stored at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import grpc

from everstep.rpc.opening import wait_opened
from everstep.training.v1.progress_pb2 import TrainingProgress

#: Events read ahead; then the trainer waits.
READ_AHEAD: Final = 1000
#: Events given out at a time, which go to the database in one transaction.
AT_A_TIME: Final = 256


class ProgressStream:
    """Events of one call, in batches; the call is cancelled when the context is left.

    Args:
        call: The stream.
        opened: Called when the trainer has it, before there is anything to say.
    """

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[Any, TrainingProgress], opened: Callable[[], None]
    ) -> None:
        self._call = call
        self._opened = opened
        self._words: asyncio.Queue[TrainingProgress | None] = asyncio.Queue(READ_AHEAD)
        self._failure: BaseException | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def next_words(self, seconds: float) -> list[TrainingProgress] | None:
        """What has come: empty after so many seconds of silence, None at the stream's end.

        Raises:
            grpc.aio.AioRpcError: When the stream breaks; all that came before was given out.
        """
        if self._ended:
            self._raise_failure()
            return None
        try:
            async with asyncio.timeout(seconds):
                word = await self._words.get()
        except TimeoutError:
            return []
        words: list[TrainingProgress] = []
        while word is not None:
            words.append(word)
            if len(words) >= AT_A_TIME or self._words.empty():
                return words
            word = self._words.get_nowait()
        self._ended = True
        if not words:
            self._raise_failure()
        return words or None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _read(self) -> None:
        try:
            if await wait_opened(self._call):
                self._opened()
            async for message in self._call:
                later = list(message.next)
                message.ClearField("next")
                for word in (message, *later):
                    await self._words.put(word)
        except grpc.aio.AioRpcError as failure:
            self._failure = failure
        await self._words.put(None)
