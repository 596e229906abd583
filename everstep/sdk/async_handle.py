"""One operation, to act on, for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstep.calls import requests
from everstep.calls.async_connection import AsyncConnection
from everstep.calls.async_watch import AsyncWatch
from everstep.calls.cursor import FINAL_STATES
from everstep.calls.waiting import is_taken, not_taken
from everstep.control.v1.operations_pb2 import Operation as OperationMessage
from everstep.downloads import check_target, download_in_thread, newest_checkpoint
from everstep.errors import HistoryCompacted
from everstep.sdk import translation
from everstep.sdk.checkpoints import Checkpoint, CheckpointPart
from everstep.sdk.event_stream import AsyncEventStream, logged
from everstep.sdk.event_translation import event
from everstep.sdk.history import History, frame
from everstep.sdk.operations import EpochRecord, Operation, TrainingResult
from everstep.sdk.outcomes import (
    overrides,
    part_value,
    result_of,
)
from everstep.sdk.strategy import changed_strategy

if TYPE_CHECKING:
    import pandas


class AsyncHandle:
    """As Handle, for asyncio: the same methods with the same arguments and errors.

    For a limit of time put `asyncio.timeout` around a call. A task that is cancelled in a call
    leaves nothing open; the training goes on.
    """

    def __init__(self, connection: AsyncConnection, operation_id: str) -> None:
        self._connection = connection
        #: As in `op-3f9a1c2b7d4e`.
        self.id = operation_id

    def __repr__(self) -> str:
        return f"AsyncHandle({self.id!r})"

    async def describe(self) -> Operation:
        """The operation as it stands."""
        return translation.operation(await self._get())

    def events(self, after: int = 0, *, transient: bool = True) -> AsyncEventStream:
        """What has happened after a sequence, then what happens; see Handle.events."""
        return AsyncEventStream(AsyncWatch(self._connection, self.id, after, logged), transient)

    async def result(self) -> TrainingResult:
        """Waits for the end, and gives what came out; see Handle.result."""
        return result_of(await self._ended(await self._get()))

    async def cancel(self, *, discard: bool = False, wait: bool = True) -> Operation:
        """Stops the training after its current step, with a checkpoint; see Handle.cancel."""
        cancelled = await self._connection.ask(requests.cancel_operation(self.id, discard=discard))
        return translation.operation(await self._ended(cancelled) if wait else cancelled)

    async def resume(
        self,
        *,
        checkpoint: str = "",
        epochs: int | None = None,
        learning_rate: float | None = None,
        allow_inexact: bool = False,
        request_id: str = "",
    ) -> Operation:
        """Goes on with the step after a checkpoint; see Handle.resume."""
        call = requests.resume_operation(
            self.id,
            checkpoint_id=checkpoint,
            overrides=overrides(epochs, learning_rate, allow_inexact),
            request_id=request_id,
        )
        return translation.operation(await self._connection.ask(call))

    async def fork(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        checkpoint: str = "",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        trainer_labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> AsyncHandle:
        """Begins a training of its own with this one's state; see Handle.fork."""
        parent = await self._get()
        call = requests.create_operation(
            changed_strategy(parent.strategy, changes),
            display_name=name,
            labels=labels,
            from_checkpoint=checkpoint or newest_checkpoint(parent),
            priority=priority,
            trainer_labels=trainer_labels,
            request_id=request_id,
        )
        return AsyncHandle(self._connection, (await self._connection.ask(call)).operation_id)

    async def set_priority(self, priority: int) -> Operation:
        """Changes its place in the queue; see Handle.set_priority."""
        call = requests.update_operation(self.id, priority=priority)
        return translation.operation(await self._connection.ask(call))

    async def checkpoint(self) -> Checkpoint:
        """Takes a checkpoint now, and waits until it is committed; see Handle.checkpoint."""
        after = (await self._get()).last_sequence
        await self._connection.ask(requests.checkpoint_operation(self.id))
        with closing(AsyncWatch(self._connection, self.id, after, logged)) as watch:
            async for message in watch:
                if is_taken(message):
                    return translation.checkpoint(message.progress.checkpoint_committed.checkpoint)
        raise not_taken(self.id)

    async def checkpoints(self) -> AsyncIterator[Checkpoint]:
        """Its checkpoints, newest first."""
        async for message in self._connection.each(requests.list_checkpoints(self.id)):
            yield translation.checkpoint(message)

    async def download(
        self,
        path: str | os.PathLike[str],
        part: CheckpointPart = "weights",
        *,
        checkpoint: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Downloads a part as one safetensors file, in a thread; see Handle.download."""
        target, number = Path(path), part_value(part)
        await asyncio.to_thread(check_target, target, overwrite=overwrite)
        name = checkpoint or newest_checkpoint(await self._get())
        chosen = await self._connection.ask(requests.get_checkpoint(name))
        urls = await self._connection.ask(requests.get_download_urls(name, number))
        await download_in_thread(urls.blobs, chosen, target)
        return target

    async def history(self) -> list[EpochRecord]:
        """The epochs so far; see Handle.history."""
        operation = await self._get()
        after = max(0, operation.first_sequence - 1)
        while True:
            try:
                return await self._history(after, operation.last_sequence)
            except HistoryCompacted as compacted:
                after = compacted.first_sequence - 1

    async def history_frame(self) -> pandas.DataFrame:
        """The epochs so far as a pandas DataFrame; see Handle.history_frame."""
        return frame(await self.history())

    async def delete(self) -> None:
        """Removes the operation, its log and its checkpoints; see Handle.delete."""
        await self._connection.ask(requests.delete_operation(self.id))

    async def _get(self) -> OperationMessage:
        return await self._connection.ask(requests.get_operation(self.id))

    async def _ended(self, operation: OperationMessage) -> OperationMessage:
        """The operation once it is in a final state."""
        while operation.state not in FINAL_STATES:
            with closing(
                AsyncWatch(self._connection, self.id, operation.last_sequence, logged)
            ) as watch:
                async for _ in watch:
                    pass
            operation = await self._get()
        return operation

    async def _history(self, after: int, last: int) -> list[EpochRecord]:
        history = History()
        with closing(AsyncWatch(self._connection, self.id, after, logged)) as watch:
            async for message in watch:
                if message.sequence:
                    history.take(event(message))
                if message.sequence >= last:
                    break
        return history.records()
