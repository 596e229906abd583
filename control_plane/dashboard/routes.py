"""The routes: each reads a request, calls the domain, and writes what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from control_plane.checkpoints import Checkpoints
from control_plane.dashboard.event_stream import Cursors, EventStreams
from control_plane.dashboard.messages import message_response, read_query, read_request
from control_plane.dashboard.operation_feed import OperationFeed, summary
from control_plane.dispatcher import Dispatcher
from control_plane.operations import Operations
from everstep.control.v1 import checkpoints_pb2, operations_pb2
from everstep.errors import EverstepError, FieldViolation, Reason

STATIC: Final = Path(__file__).with_name("static")
#: Seconds of silence after which a stream says that it is alive.
HEARTBEAT_SECONDS: Final = 10
#: Operations whose logs one stream merges.
MERGED: Final = 16


class Routes:
    """What the page asks of the control plane."""

    def __init__(
        self,
        operations: Operations,
        checkpoints: Checkpoints,
        dispatcher: Dispatcher,
        streams: EventStreams,
        feed: OperationFeed,
    ) -> None:
        self._operations = operations
        self._checkpoints = checkpoints
        self._dispatcher = dispatcher
        self._streams = streams
        self._feed = feed

    def all(self) -> list[BaseRoute]:
        """The routes in the order in which they are tried."""
        one = "/operations/{operation_id}"
        return [
            Route("/", self.page),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/operations", self.list_operations),
            Route("/operations:watch", self.watch_operations),
            Route("/events", self.watch_several),
            Route(one + "/events", self.watch_operation),
            Route(one + "/checkpoints", self.list_checkpoints),
            Route(one + ":cancel", self.cancel_operation, methods=["POST"]),
            Route(one + ":resume", self.resume_operation, methods=["POST"]),
            Route(one + ":checkpoint", self.checkpoint_operation, methods=["POST"]),
            Route(one, self.get_operation),
            Route("/checkpoints/{checkpoint_id}", self.update_checkpoint, methods=["PATCH"]),
        ]

    async def page(self, _request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def list_operations(self, request: Request) -> Response:
        asked = read_query(
            request, operations_pb2.ListOperationsRequest(), ("page_size", "page_token")
        )
        listed = await self._operations.list(asked)
        shown = [summary(operation) for operation in listed.operations]
        del listed.operations[:]
        listed.operations.extend(shown)
        return message_response(listed)

    async def watch_operations(self, _request: Request) -> Response:
        return EventSourceResponse(self._feed.subscribe(), ping=HEARTBEAT_SECONDS)

    async def get_operation(self, request: Request) -> Response:
        asked = read_query(request, operations_pb2.GetOperationRequest(), (), **_operation(request))
        return message_response(await self._operations.get(asked.operation_id))

    async def watch_operation(self, request: Request) -> Response:
        asked = read_query(
            request,
            operations_pb2.WatchOperationRequest(),
            ("after_sequence",),
            **_operation(request),
        )
        after = asked.after_sequence
        last_event_id = request.headers.get("last-event-id")
        if last_event_id:
            after = _sequence(last_event_id)
        # An unknown operation is an HTTP error, and no stream.
        await self._operations.get(asked.operation_id)
        return EventSourceResponse(
            self._streams.of_one(asked.operation_id, after), ping=HEARTBEAT_SECONDS
        )

    async def watch_several(self, request: Request) -> Response:
        """`?after=op-1=12 op-2=0`; after a break, what Last-Event-ID says."""
        begin = Cursors.parse(request.query_params.get("after", ""))
        if not 0 < len(begin.sequences) <= MERGED:
            raise _refused("after", f"names of 1 to {MERGED} operations")
        again = Cursors.parse(request.headers.get("last-event-id", ""))
        cursors = Cursors(
            {name: again.sequences.get(name, after) for name, after in begin.sequences.items()}
        )
        return EventSourceResponse(self._streams.of_several(cursors), ping=HEARTBEAT_SECONDS)

    async def list_checkpoints(self, request: Request) -> Response:
        asked = read_query(
            request,
            checkpoints_pb2.ListCheckpointsRequest(page_size=500),
            ("page_size", "page_token"),
            **_operation(request),
        )
        return message_response(await self._checkpoints.list(asked))

    async def cancel_operation(self, request: Request) -> Response:
        asked = await read_request(
            request, operations_pb2.CancelOperationRequest(), **_operation(request)
        )
        return message_response(await self._operations.cancel(asked.operation_id, asked.discard))

    async def resume_operation(self, request: Request) -> Response:
        asked = await read_request(
            request, operations_pb2.ResumeOperationRequest(), **_operation(request)
        )
        return message_response(await self._operations.resume(asked))

    async def checkpoint_operation(self, request: Request) -> Response:
        asked = await read_request(
            request, operations_pb2.CheckpointOperationRequest(), **_operation(request)
        )
        attempt = await self._operations.open_attempt(asked.operation_id)
        await self._dispatcher.take_checkpoint(attempt)
        return message_response(operations_pb2.CheckpointOperationResponse())

    async def update_checkpoint(self, request: Request) -> Response:
        asked = await read_request(
            request,
            checkpoints_pb2.UpdateCheckpointRequest(),
            checkpoint_id=request.path_params["checkpoint_id"],
        )
        if not asked.HasField("pinned"):
            return message_response(await self._checkpoints.get(asked.checkpoint_id))
        return message_response(await self._checkpoints.pin(asked.checkpoint_id, asked.pinned))


def _operation(request: Request) -> dict[str, str]:
    return {"operation_id": request.path_params["operation_id"]}


def _sequence(last_event_id: str) -> int:
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
        raise _refused("last_event_id", "not a sequence that this stream gave")
    return int(last_event_id)


def _refused(field: str, description: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST,
        f"{field} is refused: {description}; correct it",
        violations=[FieldViolation(field, description)],
    )
