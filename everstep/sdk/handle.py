"""One operation, to act on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstep.calls import requests
from everstep.calls.connection import Connection
from everstep.calls.waiting import ended, take_checkpoint
from everstep.calls.watch import Watch
from everstep.control.v1.operations_pb2 import Operation as OperationMessage
from everstep.downloads import check_target, download, newest_checkpoint
from everstep.errors import HistoryCompacted
from everstep.sdk import translation
from everstep.sdk.checkpoints import Checkpoint, CheckpointPart
from everstep.sdk.event_stream import EventStream, logged
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


class Handle:
    """One operation of a client's control plane; it holds no more than the id.

    Every method raises an EverstepError: ServiceUnavailable when no control plane answers,
    OperationNotFound when there is no such operation, and what it names itself.
    """

    def __init__(self, connection: Connection, operation_id: str) -> None:
        self._connection = connection
        #: As in `op-3f9a1c2b7d4e`.
        self.id = operation_id

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    def describe(self) -> Operation:
        """The operation as it stands."""
        return translation.operation(self._get())

    def events(self, after: int = 0, *, transient: bool = True) -> EventStream:
        """What has happened, then what happens, to the operation's end.

        Args:
            after: The sequence of the last event seen; 0 for all.
            transient: Also what is not kept: most step metrics, and the progress of a phase.

        Raises:
            HistoryCompacted: While iterating, when the log does not go back so far; go on with
                `events(after=error.first_sequence - 1)`.
        """
        return EventStream(Watch(self._connection, self.id, after, logged), transient)

    def result(self, timeout: float | None = None) -> TrainingResult:
        """Waits for the end, and gives what came out.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            TrainingFailed: It failed; `reason` is why.
            OperationCancelled: It was cancelled.
            DeadlineExceeded: It has not ended in time (a TimeoutError, too); it goes on.
        """
        return result_of(ended(self._connection, self._get(), timeout, logged))

    def cancel(
        self, *, discard: bool = False, wait: bool = True, timeout: float | None = None
    ) -> Operation:
        """Stops the training after its current step, with a checkpoint to resume from.

        Args:
            discard: Without a checkpoint.
            wait: Until it has stopped; else it may be CANCELLING yet.
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            AlreadyFinished: It has ended before.
            DeadlineExceeded: It has not stopped in time; it still will.
        """
        cancelled = self._connection.ask(requests.cancel_operation(self.id, discard=discard))
        if wait:
            cancelled = ended(self._connection, cancelled, timeout, logged)
        return translation.operation(cancelled)

    def resume(
        self,
        *,
        checkpoint: str = "",
        epochs: int | None = None,
        learning_rate: float | None = None,
        allow_inexact: bool = False,
        request_id: str = "",
    ) -> Operation:
        """Goes on with the step after a checkpoint.

        Args:
            checkpoint: Its id; empty: the newest.
            epochs: The total number of epochs, to train longer.
            learning_rate: In place of the checkpoint's.
            allow_inexact: Even where other bytes may come out; that is marked for ever after.
            request_id: A UUID: said again with it, the call has no second effect.

        Raises:
            NoCheckpoint, AlreadyRunning, AlreadyCompleted, ResumeConflict, CheckpointCorrupt,
            CheckpointNotFound, InvalidRequest
        """
        call = requests.resume_operation(
            self.id,
            checkpoint_id=checkpoint,
            overrides=overrides(epochs, learning_rate, allow_inexact),
            request_id=request_id,
        )
        return translation.operation(self._connection.ask(call))

    def fork(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        checkpoint: str = "",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        trainer_labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Handle:
        """Begins a training of its own with this one's state.

        Args:
            changes: What is otherwise in its strategy, as in `{"training": {"epochs": 40}}`.
            checkpoint: Its id; empty: the newest.
            name: Shown in lists; empty: the strategy's name.
            priority: From -100 to 100; higher runs first, a point is worth an hour of waiting.
            trainer_labels: Only on a trainer that has all of these.
            request_id: A UUID: said again with it, the call gives the same operation.

        Raises:
            NoCheckpoint, InvalidStrategy
        """
        parent = self._get()
        call = requests.create_operation(
            changed_strategy(parent.strategy, changes),
            display_name=name,
            labels=labels,
            from_checkpoint=checkpoint or newest_checkpoint(parent),
            priority=priority,
            trainer_labels=trainer_labels,
            request_id=request_id,
        )
        return Handle(self._connection, self._connection.ask(call).operation_id)

    def set_priority(self, priority: int) -> Operation:
        """Changes its place in the queue; of a running one, for the next time that it waits.

        Args:
            priority: From -100 to 100; higher runs first, a point is worth an hour of waiting.

        Raises:
            InvalidRequest
        """
        call = requests.update_operation(self.id, priority=priority)
        return translation.operation(self._connection.ask(call))

    def checkpoint(self, timeout: float | None = None) -> Checkpoint:
        """Takes a checkpoint after the current step, and waits until it is committed.

        Raises:
            NotRunning: It does not run, or ended before.
            DeadlineExceeded: It is not there in time; it still will be.
        """
        taken = take_checkpoint(self._connection, self._get(), timeout, logged)
        return translation.checkpoint(taken)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Its checkpoints, newest first."""
        found = self._connection.each(requests.list_checkpoints(self.id))
        return (translation.checkpoint(message) for message in found)

    def download(
        self,
        path: str | os.PathLike[str],
        part: CheckpointPart = "weights",
        *,
        checkpoint: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Downloads a part of a checkpoint as one safetensors file, verified byte for byte.

        Nothing stands at the path until all is there.

        Args:
            checkpoint: Its id; empty: the newest.
            overwrite: A file that is there already.

        Raises:
            NoCheckpoint, PartMissing, StoreUnavailable, CheckpointCorrupt, InvalidRequest
        """
        target, number = Path(path), part_value(part)
        check_target(target, overwrite=overwrite)
        name = checkpoint or newest_checkpoint(self._get())
        chosen = self._connection.ask(requests.get_checkpoint(name))
        urls = self._connection.ask(requests.get_download_urls(name, number))
        download(urls.blobs, chosen, target)
        return target

    def history(self) -> list[EpochRecord]:
        """The epochs so far, as the log has them; one that was trained again counts once."""
        operation = self._get()
        after = max(0, operation.first_sequence - 1)
        while True:
            try:
                return self._history(after, operation.last_sequence)
            except HistoryCompacted as compacted:
                after = compacted.first_sequence - 1

    def history_frame(self) -> pandas.DataFrame:
        """The epochs so far as a pandas DataFrame: a row for each, a column for each metric.

        Raises:
            ImportError: When pandas is not installed.
        """
        return frame(self.history())

    def delete(self) -> None:
        """Removes the operation, its log and its checkpoints.

        Raises:
            NotFinished: It still runs.
        """
        self._connection.ask(requests.delete_operation(self.id))

    def _get(self) -> OperationMessage:
        return self._connection.ask(requests.get_operation(self.id))

    def _history(self, after: int, last: int) -> list[EpochRecord]:
        history = History()
        with closing(Watch(self._connection, self.id, after, logged)) as watch:
            for message in watch:
                if message.sequence:
                    history.take(event(message))
                if message.sequence >= last:
                    break
        return history.records()
