"""The page's HTTP server, in the control plane's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Generator, Sequence

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from control_plane.checkpoints import Checkpoints
from control_plane.dashboard.event_stream import EventStreams
from control_plane.dashboard.messages import error_response
from control_plane.dashboard.operation_feed import OperationFeed
from control_plane.dashboard.routes import Routes
from control_plane.dashboard.security import SecurityMiddleware
from control_plane.database.session import Database
from control_plane.dispatcher import Dispatcher
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from everstep.errors import EverstepError, Reason

_log = structlog.get_logger(__name__)


class Dashboard:
    """Serves the page from `start` to `stop`.

    Args:
        listening: As `listen` gives it.
        allowed_hosts: Names under which it is reached, beside localhost and IP addresses.
    """

    def __init__(
        self,
        listening: socket.socket,
        allowed_hosts: Sequence[str],
        database: Database,
        log: EventLog,
        operations: Operations,
        checkpoints: Checkpoints,
        dispatcher: Dispatcher,
        stop_grace_seconds: float,
    ) -> None:
        self._listening = listening
        self._feed = OperationFeed(database)
        routes = Routes(operations, checkpoints, dispatcher, EventStreams(log), self._feed)
        application = Starlette(
            routes=routes.all(),
            middleware=[Middleware(SecurityMiddleware, allowed_hosts=allowed_hosts)],
            exception_handlers={EverstepError: _answer_error, Exception: _answer_defect},
        )
        self._server = _Server(
            uvicorn.Config(
                application,
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=max(1, round(stop_grace_seconds)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host, port = self._listening.getsockname()[:2]
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def start(self) -> None:
        """Takes requests from here on."""
        self._serving = asyncio.create_task(self._server.serve([self._listening]))

    async def stop(self) -> None:
        """Ends the streams and waits for the rest, so long as the grace lasts.

        The log's own streams end when it drains, which is to be before this.
        """
        await self._feed.close()
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)


def listen(address: str) -> socket.socket:
    """A socket on `host:port` (port 0: any free one).

    Raises:
        EverstepError: ADDRESS_IN_USE when the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, name = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        return socket.create_server(name[:2], family=family, backlog=256)
    except (OSError, ValueError):
        raise EverstepError(
            Reason.ADDRESS_IN_USE,
            f"cannot listen on {address} for the dashboard: another process has the port, or the "
            "host is not this machine's; stop that process or set EVERSTEP_DASHBOARD_LISTEN to "
            "another address (empty: no dashboard)",
        ) from None


class _Server(uvicorn.Server):
    """Leaves the signals to the control plane, which stops its parts in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def _answer_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EverstepError)
    return error_response(error)


async def _answer_defect(request: Request, error: Exception) -> Response:
    error_id = secrets.token_hex(6)
    _log.error("request failed", path=request.url.path, error_id=error_id, exc_info=error)
    return error_response(
        EverstepError(
            Reason.INTERNAL,
            f"internal error {error_id}; the service's log has the details under this id",
            metadata={"error_id": error_id},
        )
    )
