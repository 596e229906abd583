"""The control plane, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Self

from everstep.calls import requests
from everstep.calls.addresses import chosen_address
from everstep.calls.async_connection import AsyncConnection
from everstep.sdk import translation
from everstep.sdk.async_handle import AsyncHandle
from everstep.sdk.checkpoints import (
    Checkpoint,
    CollectedGarbage,
    StorageUsage,
    Verification,
    VerifiedCheckpoint,
)
from everstep.sdk.operations import Operation
from everstep.sdk.outcomes import States, state_values
from everstep.sdk.strategy import StrategySource, strategy_message
from everstep.sdk.trainers import Trainer


class AsyncClient:
    """As Client, for asyncio: the same methods with the same arguments and errors.

    An async context manager. It belongs to the event loop in which it is first used.

    Args:
        address: host:port; empty: EVERSTEP_ADDRESS, else 127.0.0.1:7070.
    """

    def __init__(self, address: str = "") -> None:
        self.address = chosen_address(address)
        self._connection = AsyncConnection(self.address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is on its way; trainings go on."""
        await self._connection.close()

    async def train(
        self,
        strategy: StrategySource,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        from_checkpoint: str = "",
        priority: int = 0,
        trainer_labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> AsyncHandle:
        """Starts a training; it is durable when this returns; see Client.train."""
        call = requests.create_operation(
            await asyncio.to_thread(strategy_message, strategy),
            display_name=name,
            labels=labels,
            from_checkpoint=from_checkpoint,
            priority=priority,
            trainer_labels=trainer_labels,
            request_id=request_id,
        )
        return AsyncHandle(self._connection, (await self._connection.ask(call)).operation_id)

    def operation(self, operation_id: str) -> AsyncHandle:
        """An operation to act on; the control plane is not asked yet."""
        return AsyncHandle(self._connection, operation_id)

    async def operations(
        self,
        *,
        state: States | None = None,
        labels: Mapping[str, str] | None = None,
        resumable: bool = False,
    ) -> AsyncIterator[Operation]:
        """Operations, newest first; see Client.operations."""
        pages = requests.list_operations(state_values(state), labels, resumable)
        async for message in self._connection.each(pages):
            yield translation.operation(message)

    async def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """One checkpoint; see Client.checkpoint."""
        message = await self._connection.ask(requests.get_checkpoint(checkpoint_id))
        return translation.checkpoint(message)

    async def checkpoints(self) -> AsyncIterator[Checkpoint]:
        """The checkpoints of all operations, newest first."""
        async for message in self._connection.each(requests.list_checkpoints()):
            yield translation.checkpoint(message)

    async def pin(self, checkpoint_id: str, *, off: bool = False) -> Checkpoint:
        """Keeps a checkpoint whatever its strategy's retention says; see Client.pin."""
        message = await self._connection.ask(requests.pin_checkpoint(checkpoint_id, not off))
        return translation.checkpoint(message)

    async def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Removes a checkpoint; see Client.delete_checkpoint."""
        await self._connection.ask(requests.delete_checkpoint(checkpoint_id))

    async def verify(self, checkpoint_id: str) -> Verification:
        """Reads every blob of a checkpoint again; see Client.verify."""
        message = await self._connection.ask(requests.verify_checkpoint(checkpoint_id))
        return translation.verification(message)

    async def verify_all(self, operation_id: str = "") -> AsyncIterator[VerifiedCheckpoint]:
        """Reads all checkpoints again, of one operation or (empty) of all; see Client.verify_all.

        Leave the loop early in `contextlib.aclosing`, which ends the reading.
        """
        async with aclosing(
            self._connection.stream(requests.verify_checkpoints(operation_id))
        ) as answers:
            async for message in answers:
                if message.HasField("verified"):
                    yield translation.verified_checkpoint(message.verified)

    async def usage(self) -> StorageUsage:
        """What checkpoints take in the store."""
        return translation.storage_usage(await self._connection.ask(requests.get_storage_usage()))

    async def collect_garbage(
        self, *, dry_run: bool = False, grace: timedelta | None = None
    ) -> CollectedGarbage:
        """Removes what no checkpoint needs; see Client.collect_garbage."""
        call = requests.collect_garbage(dry_run=dry_run, grace=grace)
        return translation.collected_garbage(await self._connection.ask(call), dry_run)

    async def trainers(self) -> list[Trainer]:
        """Every trainer that has registered."""
        found = (await self._connection.ask(requests.list_trainers())).trainers
        return [translation.trainer(message) for message in found]

    async def drain_trainer(self, trainer_id: str, *, undo: bool = False) -> Trainer:
        """Empties a trainer, or gives it work again; see Client.drain_trainer."""
        message = await self._connection.ask(requests.drain_trainer(trainer_id, undo=undo))
        return translation.trainer(message)
