"""The life of an operation: created, listed, cancelled, resumed, deleted."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection

from control_plane import pages, resumption, times
from control_plane.answered_requests import answered_with, remember_answer
from control_plane.creation import create_operation, queue_time
from control_plane.database import attempts, checkpoints, deletions, operations
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationFilter, OperationRecord
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.limits import MAX_QUEUED, check_queue
from control_plane.log_tail import operation_not_found
from control_plane.operation_messages import get_operation, operation_messages
from control_plane.states import ATTEMPT_STATES, FINAL_STATES, TRANSITIONS, Change, State
from control_plane.transitions import change_state
from everstep.control.v1 import operations_pb2
from everstep.control.v1.operations_pb2 import Operation
from everstep.errors import EverstepError, Reason
from everstep.strategy import resolve_strategy, validate_message

#: Where an operation's checkpoints stand in the store.
OPERATION_PREFIX: Final = "operations/{}/"
_UNFINISHED: Final = tuple(State(state) for state in (*ATTEMPT_STATES, State.PENDING))


class Operations:
    """What callers ask of operations.

    Args:
        database: Where they are kept.
        log: Woken when one changes.
        queue_changed: Called when the dispatcher may have something to do.
        max_queued: Operations that may wait for a trainer.
    """

    def __init__(
        self,
        database: Database,
        log: EventLog,
        queue_changed: Callable[[], None],
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._database = database
        self._log = log
        self._queue_changed = queue_changed
        self._max_queued = max_queued

    async def create(self, request: operations_pb2.CreateOperationRequest) -> Operation:
        """Stores a new operation; it is on disk when this returns.

        Raises:
            EverstepError: INVALID_STRATEGY, REQUEST_ID_REUSED, CHECKPOINT_NOT_FOUND, QUEUE_FULL.
        """
        strategy = resolve_strategy(request.strategy)
        validate_message(strategy, Reason.INVALID_STRATEGY)
        operation_id = f"op-{secrets.token_hex(6)}"
        created = await self._database.write(
            create_operation, operation_id, request, strategy, self._max_queued
        )
        self._queue_changed()
        return created

    async def get(self, operation_id: str) -> Operation:
        """One operation.

        Raises:
            EverstepError: OPERATION_NOT_FOUND.
        """
        return await self._database.read(get_operation, operation_id)

    async def list(
        self, request: operations_pb2.ListOperationsRequest
    ) -> operations_pb2.ListOperationsResponse:
        """Operations newest first, in pages.

        Raises:
            EverstepError: INVALID_REQUEST for a page token that is none.
        """
        return await self._database.read(_list, request, pages.decode_token(request.page_token))

    async def update(self, request: operations_pb2.UpdateOperationRequest) -> Operation:
        """Sets the priority, in any state.

        Raises:
            EverstepError: OPERATION_NOT_FOUND.
        """
        operation = await self._database.write(_update, request)
        self._queue_changed()
        return operation

    async def cancel(self, operation_id: str, discard: bool) -> Operation:
        """Ends an operation in the queue at once; asks a running one to stop.

        Raises:
            EverstepError: OPERATION_NOT_FOUND, ALREADY_FINISHED.
        """
        operation = await self._database.write(_cancel, operation_id, discard)
        self._log.wake(operation_id)
        self._queue_changed()
        return operation

    async def resume(self, request: operations_pb2.ResumeOperationRequest) -> Operation:
        """Queues a finished operation again; of many callers one wins.

        Raises:
            EverstepError: OPERATION_NOT_FOUND, ALREADY_RUNNING, ALREADY_COMPLETED,
                RESUME_CONFLICT, NO_CHECKPOINT, CHECKPOINT_NOT_FOUND, CHECKPOINT_CORRUPT,
                REQUEST_ID_REUSED, INVALID_REQUEST, QUEUE_FULL.
        """
        operation = await self._database.write(_resume, request, self._max_queued)
        self._log.wake(request.operation_id)
        self._queue_changed()
        return operation

    async def open_attempt(self, operation_id: str) -> AttemptRecord:
        """The attempt that runs an operation.

        Raises:
            EverstepError: OPERATION_NOT_FOUND, NOT_RUNNING.
        """
        return await self._database.read(_open_attempt, operation_id)

    async def delete(self, operation_id: str) -> None:
        """Removes a finished operation's rows; its checkpoints are left to be removed.

        Raises:
            EverstepError: OPERATION_NOT_FOUND, NOT_FINISHED, CHECKPOINT_IN_USE.
        """
        await self._database.write(_delete, operation_id)
        self._log.wake(operation_id)


def _list(
    connection: Connection,
    request: operations_pb2.ListOperationsRequest,
    before: tuple[int, str] | None,
) -> operations_pb2.ListOperationsResponse:
    wanted = OperationFilter(
        states=[State.of_message(state).value for state in request.states if state],
        labels=sorted(request.labels.items()),
        resumable_states=(
            [state.value for state in TRANSITIONS[Change.RESUMED].sources]
            if request.resumable
            else ()
        ),
    )
    size = pages.page_size(request.page_size)
    records = operations.page(connection, wanted, before, size + 1)
    shown = records[:size]
    response = operations_pb2.ListOperationsResponse(
        operations=operation_messages(connection, shown)
    )
    if len(records) > size:
        response.next_page_token = pages.encode_token(shown[-1].create_time, shown[-1].operation_id)
    return response


def _update(connection: Connection, request: operations_pb2.UpdateOperationRequest) -> Operation:
    operation = _locked(connection, request.operation_id)
    if request.HasField("priority"):
        operations.set_values(
            connection,
            request.operation_id,
            priority=request.priority,
            queue_time=queue_time(operation.create_time, request.priority),
            update_time=times.now(),
        )
    return get_operation(connection, request.operation_id)


def _cancel(connection: Connection, operation_id: str, discard: bool) -> Operation:
    operation = _locked(connection, operation_id)
    how = "without a checkpoint" if discard else "with a checkpoint"
    if operation.state in (State.COMPLETED, State.FAILED):
        raise EverstepError(
            Reason.ALREADY_FINISHED,
            f"operation {operation_id} is {operation.state} already; there is nothing to cancel",
        )
    if operation.state == State.CANCELLING and discard and not operation.discard:
        operations.set_values(connection, operation_id, discard=True)
    elif operation.state == State.PENDING:
        change_state(connection, operation, Change.CANCELLED_IN_QUEUE, "cancelled in the queue")
    elif operation.state == State.RUNNING:
        change_state(
            connection,
            operation,
            Change.CANCEL_REQUESTED,
            f"the trainer is asked to stop, {how}",
            values={"discard": discard},
        )
    return get_operation(connection, operation_id)


def _resume(
    connection: Connection, request: operations_pb2.ResumeOperationRequest, max_queued: int
) -> Operation:
    # Locked first: of the same request said twice at once, the second sees the first's answer.
    operation = _locked(connection, request.operation_id)
    answered = answered_with(connection, request.request_id, request)
    if answered is not None:
        return get_operation(connection, answered)
    plan = resumption.plan(connection, operation, request.checkpoint_id, request.overrides)
    check_queue(connection, max_queued)
    changed = change_state(connection, operation, plan.change, plan.message, values=plan.values)
    if not changed:
        raise resumption.conflict(operation.operation_id)
    remember_answer(connection, request.request_id, request, request.operation_id)
    return get_operation(connection, request.operation_id)


def _open_attempt(connection: Connection, operation_id: str) -> AttemptRecord:
    operation = operations.find(connection, operation_id)
    if operation is None:
        raise operation_not_found(operation_id)
    attempt = attempts.find(connection, operation_id, operation.attempt)
    if operation.state not in ATTEMPT_STATES or attempt is None or attempt.ending:
        raise EverstepError(
            Reason.NOT_RUNNING,
            f"operation {operation_id} is {operation.state}; only a running one takes checkpoints",
        )
    return attempt


def _delete(connection: Connection, operation_id: str) -> None:
    operation = _locked(connection, operation_id)
    for fork in operations.forks_in_states(connection, operation_id, _UNFINISHED):
        raise EverstepError(
            Reason.CHECKPOINT_IN_USE,
            f"operation {fork.operation_id} begins with a checkpoint of {operation_id}; delete it "
            "when that one has finished",
        )
    deletions.add(connection, operation_id, times.now())
    if not operations.remove(connection, operation_id, FINAL_STATES):
        raise EverstepError(
            Reason.NOT_FINISHED,
            f"operation {operation_id} is {operation.state}; cancel it, then delete it",
        )
    prefix = OPERATION_PREFIX.format(operation_id)
    checkpoints.plan_removals(connection, [prefix], times.now())


def _locked(connection: Connection, operation_id: str) -> OperationRecord:
    operation = operations.lock(connection, operation_id)
    if operation is None:
        raise operation_not_found(operation_id)
    return operation
