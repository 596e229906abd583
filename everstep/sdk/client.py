"""The control plane, for Python code that blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Self

from everstep.calls import requests
from everstep.calls.addresses import chosen_address
from everstep.calls.connection import Connection
from everstep.sdk import translation
from everstep.sdk.checkpoints import (
    Checkpoint,
    CollectedGarbage,
    StorageUsage,
    Verification,
    VerifiedCheckpoint,
)
from everstep.sdk.handle import Handle
from everstep.sdk.operations import Operation
from everstep.sdk.outcomes import States, state_values
from everstep.sdk.strategy import StrategySource, strategy_message
from everstep.sdk.trainers import Trainer


class Client:
    """Speaks to one control plane. A context manager; threads may share it.

    Calls are said again for a short while when the control plane does not answer. Every method
    raises an EverstepError: ServiceUnavailable when that was no help, and what it names itself.

    Args:
        address: host:port; empty: EVERSTEP_ADDRESS, else 127.0.0.1:7070.

    Raises:
        InvalidRequest: When it is no address.
    """

    def __init__(self, address: str = "") -> None:
        self.address = chosen_address(address)
        self._connection = Connection(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is on its way; trainings go on."""
        self._connection.close()

    def train(
        self,
        strategy: StrategySource,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        from_checkpoint: str = "",
        priority: int = 0,
        trainer_labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Handle:
        """Starts a training; it is durable when this returns.

        Args:
            strategy: A mapping, the path of a YAML file, a Strategy or the contract's message.
            name: Shown in lists; empty: the strategy's name.
            from_checkpoint: The id of a checkpoint to begin with: a fork.
            priority: From -100 to 100; higher runs first, a point is worth an hour of waiting.
            trainer_labels: Only on a trainer that has all of these.
            request_id: A UUID: said again with it, the call gives the same operation.

        Raises:
            InvalidStrategy: With the fields that are refused.
        """
        call = requests.create_operation(
            strategy_message(strategy),
            display_name=name,
            labels=labels,
            from_checkpoint=from_checkpoint,
            priority=priority,
            trainer_labels=trainer_labels,
            request_id=request_id,
        )
        return Handle(self._connection, self._connection.ask(call).operation_id)

    def operation(self, operation_id: str) -> Handle:
        """An operation to act on; the control plane is not asked yet."""
        return Handle(self._connection, operation_id)

    def operations(
        self,
        *,
        state: States | None = None,
        labels: Mapping[str, str] | None = None,
        resumable: bool = False,
    ) -> Iterator[Operation]:
        """Operations, newest first.

        Args:
            state: One, or several of which it is in one.
            labels: All of these.
            resumable: Only those that can be taken up again.
        """
        pages = requests.list_operations(state_values(state), labels, resumable)
        return (translation.operation(message) for message in self._connection.each(pages))

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """One checkpoint.

        Raises:
            CheckpointNotFound
        """
        message = self._connection.ask(requests.get_checkpoint(checkpoint_id))
        return translation.checkpoint(message)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """The checkpoints of all operations, newest first."""
        found = self._connection.each(requests.list_checkpoints())
        return (translation.checkpoint(message) for message in found)

    def pin(self, checkpoint_id: str, *, off: bool = False) -> Checkpoint:
        """Keeps a checkpoint whatever its strategy's retention says; off: no longer.

        Raises:
            CheckpointNotFound
        """
        message = self._connection.ask(requests.pin_checkpoint(checkpoint_id, not off))
        return translation.checkpoint(message)

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Removes a checkpoint; its bytes go with the next garbage collection.

        Raises:
            CheckpointNotFound, CheckpointInUse
        """
        self._connection.ask(requests.delete_checkpoint(checkpoint_id))

    def verify(self, checkpoint_id: str) -> Verification:
        """Reads every blob of a checkpoint again and compares its digest.

        Raises:
            CheckpointCorrupt: Naming what is damaged, and a checkpoint that is good.
            CheckpointNotFound, StoreUnavailable
        """
        message = self._connection.ask(requests.verify_checkpoint(checkpoint_id))
        return translation.verification(message)

    def verify_all(self, operation_id: str = "") -> Iterator[VerifiedCheckpoint]:
        """Reads all checkpoints again, of one operation or (empty) of all, each blob once.

        Gives each as it is done, damaged or not. One who stops iterating ends the reading.
        """
        for message in self._connection.stream(requests.verify_checkpoints(operation_id)):
            if message.HasField("verified"):
                yield translation.verified_checkpoint(message.verified)

    def usage(self) -> StorageUsage:
        """What checkpoints take in the store."""
        return translation.storage_usage(self._connection.ask(requests.get_storage_usage()))

    def collect_garbage(
        self, *, dry_run: bool = False, grace: timedelta | None = None
    ) -> CollectedGarbage:
        """Removes what no checkpoint needs, and what is left of uploads that nobody ended.

        Args:
            dry_run: Only say what would go.
            grace: Only what is older than this; None: the service's setting.
        """
        call = requests.collect_garbage(dry_run=dry_run, grace=grace)
        return translation.collected_garbage(self._connection.ask(call), dry_run)

    def trainers(self) -> list[Trainer]:
        """Every trainer that has registered."""
        found = self._connection.ask(requests.list_trainers()).trainers
        return [translation.trainer(message) for message in found]

    def drain_trainer(self, trainer_id: str, *, undo: bool = False) -> Trainer:
        """Gives a trainer no new work and moves what it runs; undo: gives it work again.

        Each training is handed over, and goes on with its next step, as soon as another trainer
        alike has room; until then it stays.

        Raises:
            TrainerNotFound
        """
        message = self._connection.ask(requests.drain_trainer(trainer_id, undo=undo))
        return translation.trainer(message)
