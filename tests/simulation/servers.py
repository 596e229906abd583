"""Servers without a wire: the real servicers behind the real interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from everstep.rpc.interceptors import ErrorInterceptor
from tests.simulation.loop import PROCESS


class SimulatedServer:
    """As grpc.aio.Server, as far as the services use one.

    Args:
        serving: By address, those that take calls.
    """

    def __init__(self, serving: dict[str, SimulatedServer]) -> None:
        process = PROCESS.get()
        assert process is not None
        self.process = process
        self.handling: dict[asyncio.Task[None], None] = {}
        self._serving = serving
        self._address = ""
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._interceptor = ErrorInterceptor()
        self._guarded: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The same methods come by name."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        for name, handler in handlers.items():
            self._methods[f"/{service}/{name}"] = handler

    def bind(self, address: str) -> None:
        self._address = address

    async def start(self) -> None:
        self._serving[self._address] = self

    async def stop(self, grace: float | None) -> None:
        """Takes no new calls; those on their way have the grace to end."""
        if self._serving.get(self._address) is self:
            del self._serving[self._address]
        if self.handling:
            await asyncio.wait(list(self.handling), timeout=grace)
        for task in list(self.handling):
            task.cancel()

    async def handler(self, path: str) -> Any:
        """A method behind the real interceptor."""
        guarded = self._guarded.get(path)
        if guarded is None:
            method = self._methods.get(path)

            async def continuation(_: object) -> Any:
                return method

            guarded = await self._interceptor.intercept_service(
                continuation,
                _Details(path),  # type: ignore[arg-type]
            )
            if guarded is None:
                raise Aborted(bare_error(grpc.StatusCode.UNIMPLEMENTED, path))
            self._guarded[path] = guarded
        return guarded


Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Details:
    method: str


class CallContext:
    """As grpc.aio.ServicerContext, as far as interceptor and servicers use one.

    Args:
        opened: Called with what is said before the first message.
    """

    def __init__(self, opened: Callable[[Metadata], None]) -> None:
        self._opened = opened

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        self._opened(metadata)

    async def abort_with_status(self, status: Any) -> None:
        raise Aborted(
            grpc.aio.AioRpcError(
                status.code,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(*status.trailing_metadata),
                status.details,
            )
        )


class Aborted(grpc.aio.AbortError):
    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__()
        self.error = error


def bare_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """A status that no service of ours has said."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
