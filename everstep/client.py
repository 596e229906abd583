"""A client of the control plane: plain calls, and a watch that takes itself up again."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from everstep.control.v1 import (
    checkpoints_pb2,
    checkpoints_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    trainers_pb2,
    trainers_pb2_grpc,
)
from everstep.control.v1.operations_pb2 import Operation, OperationEvent, OperationState
from everstep.errors import EverstepError, Reason
from everstep.rpc.options import UNARY_DEADLINE_SECONDS, open_sync_channel
from everstep.rpc.status import error_from_call
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy

Response = TypeVar("Response")

FINAL_STATES: Final = frozenset(
    {
        operations_pb2.OPERATION_STATE_COMPLETED,
        operations_pb2.OPERATION_STATE_FAILED,
        operations_pb2.OPERATION_STATE_CANCELLED,
    }
)
#: Reading every blob of a checkpoint again takes longer than other calls.
VERIFY_DEADLINE_SECONDS: Final = 600.0
#: What a watch outlives: the service stops, restarts, or cannot be reached.
_PASSING: Final = frozenset({Reason.SERVICE_UNAVAILABLE, Reason.DRAINING, Reason.CALL_CANCELLED})


class Client:
    """Speaks to one control plane; a context manager that closes its channel.

    Every method raises EverstepError with the service's reason.

    Args:
        address: host:port.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = open_sync_channel(address)
        self._operations = operations_pb2_grpc.OperationServiceStub(self._channel)
        self._checkpoints = checkpoints_pb2_grpc.CheckpointServiceStub(self._channel)
        self._trainers = trainers_pb2_grpc.TrainerRegistryServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def create_operation(
        self,
        strategy: TrainingStrategy,
        *,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        from_checkpoint: str = "",
    ) -> Operation:
        """Starts a training; it is durable when this returns."""
        return self._call(
            self._operations.CreateOperation,
            operations_pb2.CreateOperationRequest(
                request_id=str(uuid.uuid4()),
                display_name=display_name,
                strategy=strategy,
                labels=dict(labels or {}),
                from_checkpoint=from_checkpoint,
            ),
        )

    def operation(self, operation_id: str) -> Operation:
        """One operation as it stands."""
        return self._call(
            self._operations.GetOperation,
            operations_pb2.GetOperationRequest(operation_id=operation_id),
        )

    def operations(
        self, states: Sequence[OperationState.ValueType] = (), resumable: bool = False
    ) -> Iterator[Operation]:
        """All operations, newest first, a page at a time."""
        token = ""
        while True:
            page = self._call(
                self._operations.ListOperations,
                operations_pb2.ListOperationsRequest(
                    states=states, resumable=resumable, page_token=token
                ),
            )
            yield from page.operations
            token = page.next_page_token
            if not token:
                return

    def find_operation(self, name: str) -> str:
        """The id of an operation, given whole or as a prefix that is unique.

        Raises:
            EverstepError: OPERATION_NOT_FOUND; INVALID_REQUEST when several begin like this.
        """
        try:
            return self.operation(name).operation_id
        except EverstepError as error:
            if error.reason not in (Reason.OPERATION_NOT_FOUND, Reason.INVALID_REQUEST):
                raise
            first = error
        found = [
            operation.operation_id
            for operation in self.operations()
            if name and operation.operation_id.startswith((name, f"op-{name}"))
        ]
        if len(found) > 1:
            raise EverstepError(
                Reason.INVALID_REQUEST,
                f"{len(found)} operations begin with {name}: {', '.join(found[:4])}; name one",
            )
        if not found:
            raise first
        return found[0]

    def cancel(self, operation_id: str, *, discard: bool = False) -> Operation:
        """Asks an operation to stop, with a checkpoint unless discarded."""
        return self._call(
            self._operations.CancelOperation,
            operations_pb2.CancelOperationRequest(operation_id=operation_id, discard=discard),
        )

    def resume(
        self,
        operation_id: str,
        *,
        checkpoint_id: str = "",
        overrides: StrategyOverrides | None = None,
    ) -> Operation:
        """Takes an operation up again from its newest checkpoint, or a named one."""
        return self._call(
            self._operations.ResumeOperation,
            operations_pb2.ResumeOperationRequest(
                operation_id=operation_id,
                request_id=str(uuid.uuid4()),
                checkpoint_id=checkpoint_id,
                overrides=overrides,
            ),
        )

    def checkpoint_now(self, operation_id: str) -> None:
        """Asks for a checkpoint after the current step."""
        self._call(
            self._operations.CheckpointOperation,
            operations_pb2.CheckpointOperationRequest(operation_id=operation_id),
        )

    def delete_operation(self, operation_id: str) -> None:
        """Removes a finished operation with its checkpoints."""
        self._call(
            self._operations.DeleteOperation,
            operations_pb2.DeleteOperationRequest(operation_id=operation_id),
        )

    def checkpoints(self, operation_id: str = "") -> Iterator[Checkpoint]:
        """Checkpoints, newest first, of one operation or of all."""
        token = ""
        while True:
            page = self._call(
                self._checkpoints.ListCheckpoints,
                checkpoints_pb2.ListCheckpointsRequest(operation_id=operation_id, page_token=token),
            )
            yield from page.checkpoints
            token = page.next_page_token
            if not token:
                return

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """One checkpoint."""
        return self._call(
            self._checkpoints.GetCheckpoint,
            checkpoints_pb2.GetCheckpointRequest(checkpoint_id=checkpoint_id),
        )

    def pin(self, checkpoint_id: str, pinned: bool) -> Checkpoint:
        """Keeps a checkpoint whatever the retention says, or no longer."""
        return self._call(
            self._checkpoints.UpdateCheckpoint,
            checkpoints_pb2.UpdateCheckpointRequest(checkpoint_id=checkpoint_id, pinned=pinned),
        )

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Removes a checkpoint; its blobs go with the next garbage collection."""
        self._call(
            self._checkpoints.DeleteCheckpoint,
            checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=checkpoint_id),
        )

    def verify(self, checkpoint_id: str) -> checkpoints_pb2.VerifyCheckpointResponse:
        """Reads every blob again and compares its digest."""
        return self._call(
            self._checkpoints.VerifyCheckpoint,
            checkpoints_pb2.VerifyCheckpointRequest(checkpoint_id=checkpoint_id),
            timeout=VERIFY_DEADLINE_SECONDS,
        )

    def verify_all(
        self, operation_id: str = ""
    ) -> Iterator[checkpoints_pb2.VerifyCheckpointsResponse]:
        """Reads every blob of all checkpoints again, of one operation or (empty) all.

        Gives each checkpoint as it is done, and between them how far the reading is. One who stops
        iterating ends the reading.
        """
        stream = self._checkpoints.VerifyCheckpoints(
            checkpoints_pb2.VerifyCheckpointsRequest(operation_id=operation_id)
        )
        try:
            yield from stream
        except grpc.RpcError as failure:
            raise self._error(failure) from None
        finally:
            stream.cancel()

    def downloads(
        self, checkpoint_id: str, part: checkpoints_pb2.CheckpointPart.ValueType
    ) -> Sequence[checkpoints_pb2.BlobDownload]:
        """Where a checkpoint's part can be downloaded."""
        return self._call(
            self._checkpoints.GetDownloadUrls,
            checkpoints_pb2.GetDownloadUrlsRequest(checkpoint_id=checkpoint_id, part=part),
        ).blobs

    def usage(self) -> checkpoints_pb2.GetStorageUsageResponse:
        """What checkpoints take, and what a garbage collection would free."""
        return self._call(
            self._checkpoints.GetStorageUsage,
            checkpoints_pb2.GetStorageUsageRequest(),
            timeout=VERIFY_DEADLINE_SECONDS,
        )

    def collect_garbage(self, *, dry_run: bool) -> checkpoints_pb2.CollectGarbageResponse:
        """Removes blobs that no checkpoint needs, or says what it would remove."""
        return self._call(
            self._checkpoints.CollectGarbage,
            checkpoints_pb2.CollectGarbageRequest(dry_run=dry_run),
            timeout=VERIFY_DEADLINE_SECONDS,
        )

    def trainers(self) -> Sequence[trainers_pb2.Trainer]:
        """Every trainer that has registered."""
        return self._call(self._trainers.ListTrainers, trainers_pb2.ListTrainersRequest()).trainers

    def drain_trainer(self, trainer_id: str, *, undo: bool) -> trainers_pb2.Trainer:
        """Gives a trainer no new work, or work again."""
        return self._call(
            self._trainers.DrainTrainer,
            trainers_pb2.DrainTrainerRequest(trainer_id=trainer_id, undo=undo),
        )

    def watch(
        self,
        operation_id: str,
        after_sequence: int = 0,
        interrupted: Callable[[EverstepError, int], None] = lambda _error, _failures: None,
    ) -> Iterator[OperationEvent]:
        """An operation's events to its end; a broken stream is opened again after the last one.

        Every durable event comes once and in order; of step metrics the newest.

        Args:
            after_sequence: The last one seen; 0 for all.
            interrupted: Called with each failure and their count since the last event.
        """
        cursor, failures, ended = after_sequence, 0, False
        while True:
            stream = self._operations.WatchOperation(
                operations_pb2.WatchOperationRequest(
                    operation_id=operation_id, after_sequence=cursor
                )
            )
            try:
                for response in stream:
                    failures = 0
                    for event in response.batch.events:
                        if event.sequence:
                            if event.sequence <= cursor:
                                continue
                            cursor = event.sequence
                        if event.HasField("state_changed"):
                            ended = event.state_changed.to in FINAL_STATES
                        yield event
                if ended or self.operation(operation_id).state in FINAL_STATES:
                    return
            except grpc.RpcError as failure:
                error = error_from_call(failure)
                if error.reason not in _PASSING:
                    raise error from None
                failures += 1
                interrupted(error, failures)
                time.sleep(_pause_seconds(failures))
            except EverstepError as error:
                if error.reason not in _PASSING:
                    raise
                failures += 1
                time.sleep(_pause_seconds(failures))
            finally:
                stream.cancel()

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, Response],
        request: Message,
        timeout: float = UNARY_DEADLINE_SECONDS,
    ) -> Response:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as failure:
            raise self._error(failure) from None

    def _error(self, failure: grpc.RpcError) -> EverstepError:
        error = error_from_call(failure)
        if error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED):
            return EverstepError(
                Reason.SERVICE_UNAVAILABLE,
                f"no control plane answers at {self.address}; run `everstep up`, or say where "
                "it is with --address or EVERSTEP_ADDRESS",
            )
        return error


def _pause_seconds(failures: int) -> float:
    """Before a watch is opened again: doubled each time, jittered, at most five seconds."""
    longest: float = min(5.0, 0.2 * 2 ** min(failures, 8))
    return longest * (0.5 + random.random() / 2)
