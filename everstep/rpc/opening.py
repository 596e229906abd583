"""The first sign of a stream: whoever opened it knows at once that the other side has it."""

from __future__ import annotations

from typing import Any, Final

import grpc

_SIGN: Final = ("everstep-opened", "1")


async def say_opened(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Sends the sign, before there is anything to say."""
    await context.send_initial_metadata((_SIGN,))


async def wait_opened(call: grpc.aio.UnaryStreamCall[Any, Any]) -> bool:
    """Waits for the sign; False when the call ends without it, or the other side gives none."""
    return _SIGN in tuple(await call.initial_metadata())
