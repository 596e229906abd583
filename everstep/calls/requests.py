"""Each call of the control plane as a value: what is asked, and how long it may take."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from everstep.control.v1 import checkpoints_pb2, operations_pb2, trainers_pb2
from everstep.control.v1.checkpoints_pb2 import CheckpointPart
from everstep.control.v1.operations_pb2 import Operation, OperationState, RestartPolicy
from everstep.errors import EverstepError, Reason
from everstep.rpc.options import UNARY_DEADLINE_SECONDS
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.strategy_pb2 import StrategyOverrides, TrainingStrategy

Response = TypeVar("Response", bound=Message)
Page = TypeVar("Page", bound=Message)
Item = TypeVar("Item")

OPERATIONS: Final = "everstep.control.v1.OperationService"
CHECKPOINTS: Final = "everstep.control.v1.CheckpointService"
TRAINERS: Final = "everstep.control.v1.TrainerRegistryService"
#: Reading every blob of a checkpoint again takes longer than other calls.
LONG_DEADLINE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Call(Generic[Response]):
    """One call.

    A unary one may be said twice: what creates or resumes carries a request_id.
    """

    service: str
    method: str
    request: Message
    response: type[Response]
    #: How long a unary call may take.
    seconds: float = UNARY_DEADLINE_SECONDS

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{self.service}/{self.method}"


@dataclass(frozen=True)
class Pages(Generic[Page, Item]):
    """A call that is said again for each page."""

    call: Call[Page]
    items: Callable[[Page], Sequence[Item]]

    def after(self, page: Any) -> Pages[Page, Item] | None:
        """The next page's call; None after the last page."""
        if not page.next_page_token:
            return None
        request = type(self.call.request)()
        request.CopyFrom(self.call.request)
        request.page_token = page.next_page_token  # type: ignore[attr-defined]
        call = Call(self.call.service, self.call.method, request, self.call.response)
        return Pages(call, self.items)


def create_operation(
    strategy: TrainingStrategy,
    *,
    display_name: str = "",
    labels: Mapping[str, str] | None = None,
    restart_policy: RestartPolicy | None = None,
    from_checkpoint: str = "",
    priority: int = 0,
    trainer_labels: Mapping[str, str] | None = None,
    request_id: str = "",
) -> Call[Operation]:
    """Starts a training; it is durable when the call returns.

    Raises:
        EverstepError: INVALID_REQUEST for a priority that is no number of 32 bits.
    """
    request = operations_pb2.CreateOperationRequest(
        request_id=request_id or str(uuid.uuid4()),
        display_name=display_name,
        strategy=strategy,
        labels=dict(labels or {}),
        restart_policy=restart_policy,
        from_checkpoint=from_checkpoint,
        priority=_priority(priority),
        trainer_labels=dict(trainer_labels or {}),
    )
    return Call(OPERATIONS, "CreateOperation", request, Operation)


def get_operation(operation_id: str) -> Call[Operation]:
    """One operation as it stands."""
    request = operations_pb2.GetOperationRequest(operation_id=operation_id)
    return Call(OPERATIONS, "GetOperation", request, Operation)


def list_operations(
    states: Sequence[OperationState.ValueType] = (),
    labels: Mapping[str, str] | None = None,
    resumable: bool = False,
) -> Pages[operations_pb2.ListOperationsResponse, Operation]:
    """All operations, newest first."""
    request = operations_pb2.ListOperationsRequest(
        states=states, labels=dict(labels or {}), resumable=resumable
    )
    call = Call(OPERATIONS, "ListOperations", request, operations_pb2.ListOperationsResponse)
    return Pages(call, lambda page: page.operations)


def update_operation(operation_id: str, *, priority: int) -> Call[Operation]:
    """Changes an operation's place in the queue.

    Raises:
        EverstepError: INVALID_REQUEST for a priority that is no number of 32 bits.
    """
    request = operations_pb2.UpdateOperationRequest(
        operation_id=operation_id, priority=_priority(priority)
    )
    return Call(OPERATIONS, "UpdateOperation", request, Operation)


def watch_operation(
    operation_id: str, after_sequence: int
) -> Call[operations_pb2.WatchOperationResponse]:
    """The stream of an operation's events after a sequence."""
    request = operations_pb2.WatchOperationRequest(
        operation_id=operation_id, after_sequence=after_sequence
    )
    return Call(OPERATIONS, "WatchOperation", request, operations_pb2.WatchOperationResponse)


def cancel_operation(operation_id: str, *, discard: bool = False) -> Call[Operation]:
    """Asks an operation to stop, with a checkpoint unless discarded."""
    request = operations_pb2.CancelOperationRequest(operation_id=operation_id, discard=discard)
    return Call(OPERATIONS, "CancelOperation", request, Operation)


def resume_operation(
    operation_id: str,
    *,
    checkpoint_id: str = "",
    overrides: StrategyOverrides | None = None,
    request_id: str = "",
) -> Call[Operation]:
    """Takes an operation up again from its newest checkpoint, or a named one."""
    request = operations_pb2.ResumeOperationRequest(
        operation_id=operation_id,
        request_id=request_id or str(uuid.uuid4()),
        checkpoint_id=checkpoint_id,
        overrides=overrides,
    )
    return Call(OPERATIONS, "ResumeOperation", request, Operation)


def checkpoint_operation(operation_id: str) -> Call[operations_pb2.CheckpointOperationResponse]:
    """Asks for a checkpoint after the current step."""
    request = operations_pb2.CheckpointOperationRequest(operation_id=operation_id)
    response = operations_pb2.CheckpointOperationResponse
    return Call(OPERATIONS, "CheckpointOperation", request, response)


def delete_operation(operation_id: str) -> Call[operations_pb2.DeleteOperationResponse]:
    """Removes a finished operation with its checkpoints."""
    request = operations_pb2.DeleteOperationRequest(operation_id=operation_id)
    return Call(OPERATIONS, "DeleteOperation", request, operations_pb2.DeleteOperationResponse)


def list_checkpoints(
    operation_id: str = "",
) -> Pages[checkpoints_pb2.ListCheckpointsResponse, Checkpoint]:
    """Checkpoints, newest first, of one operation or (empty) all."""
    request = checkpoints_pb2.ListCheckpointsRequest(operation_id=operation_id)
    call = Call(CHECKPOINTS, "ListCheckpoints", request, checkpoints_pb2.ListCheckpointsResponse)
    return Pages(call, lambda page: page.checkpoints)


def get_checkpoint(checkpoint_id: str) -> Call[Checkpoint]:
    """One checkpoint."""
    request = checkpoints_pb2.GetCheckpointRequest(checkpoint_id=checkpoint_id)
    return Call(CHECKPOINTS, "GetCheckpoint", request, Checkpoint)


def pin_checkpoint(checkpoint_id: str, pinned: bool) -> Call[Checkpoint]:
    """Keeps a checkpoint whatever the retention says, or no longer."""
    request = checkpoints_pb2.UpdateCheckpointRequest(checkpoint_id=checkpoint_id, pinned=pinned)
    return Call(CHECKPOINTS, "UpdateCheckpoint", request, Checkpoint)


def delete_checkpoint(checkpoint_id: str) -> Call[checkpoints_pb2.DeleteCheckpointResponse]:
    """Removes a checkpoint; its blobs go with the next garbage collection."""
    request = checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=checkpoint_id)
    return Call(CHECKPOINTS, "DeleteCheckpoint", request, checkpoints_pb2.DeleteCheckpointResponse)


def verify_checkpoint(checkpoint_id: str) -> Call[checkpoints_pb2.VerifyCheckpointResponse]:
    """Reads every blob again and compares its digest."""
    request = checkpoints_pb2.VerifyCheckpointRequest(checkpoint_id=checkpoint_id)
    response = checkpoints_pb2.VerifyCheckpointResponse
    return Call(CHECKPOINTS, "VerifyCheckpoint", request, response, LONG_DEADLINE_SECONDS)


def verify_checkpoints(operation_id: str = "") -> Call[checkpoints_pb2.VerifyCheckpointsResponse]:
    """The stream that verifies all checkpoints, of one operation or (empty) all."""
    request = checkpoints_pb2.VerifyCheckpointsRequest(operation_id=operation_id)
    response = checkpoints_pb2.VerifyCheckpointsResponse
    return Call(CHECKPOINTS, "VerifyCheckpoints", request, response)


def get_download_urls(
    checkpoint_id: str, part: CheckpointPart.ValueType
) -> Call[checkpoints_pb2.GetDownloadUrlsResponse]:
    """Where a checkpoint's part can be downloaded."""
    request = checkpoints_pb2.GetDownloadUrlsRequest(checkpoint_id=checkpoint_id, part=part)
    return Call(CHECKPOINTS, "GetDownloadUrls", request, checkpoints_pb2.GetDownloadUrlsResponse)


def get_storage_usage() -> Call[checkpoints_pb2.GetStorageUsageResponse]:
    """What checkpoints take, and what a garbage collection would free."""
    request = checkpoints_pb2.GetStorageUsageRequest()
    response = checkpoints_pb2.GetStorageUsageResponse
    return Call(CHECKPOINTS, "GetStorageUsage", request, response, LONG_DEADLINE_SECONDS)


def collect_garbage(
    *, dry_run: bool, grace: timedelta | None = None
) -> Call[checkpoints_pb2.CollectGarbageResponse]:
    """Removes blobs that no checkpoint needs, or says what it would remove.

    Args:
        grace: Only what is older; None: the service's setting.
    """
    request = checkpoints_pb2.CollectGarbageRequest(dry_run=dry_run)
    if grace is not None:
        duration = Duration()
        duration.FromTimedelta(grace)
        request.grace.CopyFrom(duration)
    response = checkpoints_pb2.CollectGarbageResponse
    return Call(CHECKPOINTS, "CollectGarbage", request, response, LONG_DEADLINE_SECONDS)


def list_trainers() -> Call[trainers_pb2.ListTrainersResponse]:
    """Every trainer that has registered."""
    request = trainers_pb2.ListTrainersRequest()
    return Call(TRAINERS, "ListTrainers", request, trainers_pb2.ListTrainersResponse)


def drain_trainer(trainer_id: str, *, undo: bool) -> Call[trainers_pb2.Trainer]:
    """Gives a trainer no new work and moves what it runs, or gives it work again."""
    request = trainers_pb2.DrainTrainerRequest(trainer_id=trainer_id, undo=undo)
    return Call(TRAINERS, "DrainTrainer", request, trainers_pb2.Trainer)


def _priority(priority: int) -> int:
    """What the message can carry; the service knows the limits."""
    if not -(2**31) <= priority < 2**31:
        raise EverstepError(
            Reason.INVALID_REQUEST, f"priority is {priority}; give one from -100 to 100"
        )
    return priority
