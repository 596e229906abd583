"""A control plane over loopback that says what a test tells it to, and counts open streams."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import Any

import grpc

from everstep.control.v1 import operations_pb2, operations_pb2_grpc
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_RUNNING,
    EventBatch,
    GetOperationRequest,
    Operation,
    OperationEvent,
    WatchOperationRequest,
    WatchOperationResponse,
)
from everstep.errors import EverstepError, Reason
from everstep.rpc.status import status_of_error
from everstep.training.v1.progress_pb2 import TrainingProgress, Warning


class Silence(Enum):
    """A stream that says nothing more, and stays open."""

    FOR_EVER = auto()


#: A client hears a silent stream no longer than this.
PATIENCE_SECONDS = 10.0
HEARD_FOR_TOO_LONG = EverstepError(Reason.INTERNAL, "nobody ended a silent stream")

Step = WatchOperationResponse | EverstepError | Silence
Context = grpc.ServicerContext


class ScriptedControlPlane(operations_pb2_grpc.OperationServiceServicer):
    """Each watch plays the next script; each GetOperation fails with the next error, while any."""

    def __init__(self) -> None:
        self.scripts: deque[Sequence[Step]] = deque()
        self.refusals: deque[EverstepError] = deque()
        self.state = OPERATION_STATE_RUNNING
        #: The sequence after which each watch began.
        self.watched: list[int] = []
        self.open_streams = 0
        self._changing = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8))
        operations_pb2_grpc.add_OperationServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def GetOperation(self, request: GetOperationRequest, context: Context) -> Operation:
        if self.refusals:
            context.abort_with_status(status_of_error(self.refusals.popleft()))
        return Operation(operation_id=request.operation_id, state=self.state)

    def WatchOperation(
        self, request: WatchOperationRequest, context: Context
    ) -> Iterator[WatchOperationResponse]:
        ended = threading.Event()
        self.watched.append(request.after_sequence)
        self._count(1)

        def end() -> None:
            ended.set()
            self._count(-1)

        context.add_callback(end)
        for step in self.scripts.popleft():
            if isinstance(step, EverstepError):
                context.abort_with_status(status_of_error(step))
            elif isinstance(step, Silence):
                if not ended.wait(PATIENCE_SECONDS):
                    context.abort_with_status(status_of_error(HEARD_FOR_TOO_LONG))
            else:
                yield step

    def _count(self, change: int) -> None:
        with self._changing:
            self.open_streams += change


def events(*sequences: int) -> WatchOperationResponse:
    """A batch of warnings; sequence 0 is a transient one."""
    return _batch(
        [
            OperationEvent(
                operation_id="op-1",
                sequence=sequence,
                progress=TrainingProgress(warning=Warning(message=str(sequence))),
            )
            for sequence in sequences
        ]
    )


def unknown(sequence: int) -> WatchOperationResponse:
    """An event of a kind that this version does not know."""
    return _batch([OperationEvent(operation_id="op-1", sequence=sequence)])


def end(sequence: int) -> WatchOperationResponse:
    """The operation completes."""
    changed = operations_pb2.StateChanged(to=OPERATION_STATE_COMPLETED)
    return _batch([OperationEvent(operation_id="op-1", sequence=sequence, state_changed=changed)])


def mark(sequence: int) -> WatchOperationResponse:
    """Nothing new up to here."""
    return WatchOperationResponse(through_sequence=sequence)


def _batch(entries: list[Any]) -> WatchOperationResponse:
    return WatchOperationResponse(batch=EventBatch(events=entries))
