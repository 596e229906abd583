"""A server's life: made, bound, announced healthy, stopped in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from everstep.errors import EverstepError, Reason
from everstep.rpc.interceptors import server_interceptors
from everstep.rpc.options import SERVER_OPTIONS


def create_server() -> grpc.aio.Server:
    """A server with Everstep's options and interceptors, not yet bound."""
    return grpc.aio.server(interceptors=server_interceptors(), options=SERVER_OPTIONS)


def add_health(server: grpc.aio.Server) -> health.aio.HealthServicer:
    """The standard health service; nothing is SERVING until `set_serving` says so."""
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets tools list the services; off unless a setting asks for it."""
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


async def set_serving(
    servicer: health.aio.HealthServicer, services: Sequence[str], serving: bool
) -> None:
    """Says of the server and of each service whether it takes calls."""
    status = (
        health_pb2.HealthCheckResponse.SERVING
        if serving
        else health_pb2.HealthCheckResponse.NOT_SERVING
    )
    for name in ("", *services):
        await servicer.set(name, status)


def bind(server: grpc.aio.Server, address: str) -> str:
    """Binds to `host:port` (port 0: any free one) and returns the address with its real port.

    Raises:
        EverstepError: ADDRESS_IN_USE when the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise EverstepError(
            Reason.ADDRESS_IN_USE,
            f"cannot listen on {host}:{port}: another process has the port, or the host is not "
            "this machine's; stop that process or set EVERSTEP_LISTEN to another address",
        )
    return f"{host}:{bound}"


def stop_requested() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets, in the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
