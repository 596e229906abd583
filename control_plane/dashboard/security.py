"""Who may ask: the page itself, under a name of this machine, and nothing else in the browser.

There is no login. A page of another origin can neither read (no CORS headers, and a name that is
rebound to this address is refused) nor change anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.dashboard.messages import error_response
from everstep.errors import EverstepError, Reason

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SecurityMiddleware:
    """Refuses foreign names and origins, and tells the browser what the page may load.

    Args:
        application: What answers the rest.
        allowed_hosts: Names of this service beside localhost and IP addresses.
    """

    def __init__(self, application: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._application = application
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                # Another version of the service has other files under the same names.
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except EverstepError as error:
            await error_response(error)(scope, receive, send_with_headers)
            return
        await self._application(scope, receive, send_with_headers)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(_host_name(host)):
            raise EverstepError(
                Reason.ORIGIN_REFUSED,
                "the dashboard does not answer under this name; use its IP address or localhost, "
                "or allow the name with EVERSTEP_DASHBOARD_ALLOWED_HOSTS",
            )
        if method in _SAFE_METHODS:
            return
        # A browser sends both; what sends neither is no browser, and holds nobody's rights.
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise EverstepError(
                Reason.ORIGIN_REFUSED,
                "a page of another origin may not change anything here; use the dashboard itself",
            )
        # No form can send this, and no script of another origin without being allowed to.
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise EverstepError(
                Reason.ORIGIN_REFUSED, "a change needs the header Content-Type: application/json"
            )

    def _is_ours(self, name: str) -> bool:
        """Whether the name cannot have been rebound: an address, localhost, or one allowed."""
        if name == "localhost" or name in self._allowed_hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _host_name(host: str) -> str:
    """The host without its port, in small letters."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
