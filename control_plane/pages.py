"""Lists in pages: where a page ends, as an opaque token."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from everstep.errors import EverstepError, FieldViolation, Reason

DEFAULT_SIZE: Final = 50


def page_size(asked: int) -> int:
    """Entries of a page; 0 means the default."""
    return asked or DEFAULT_SIZE


def encode_token(time: int, name: str) -> str:
    """The token of the page after the entry with this time and name."""
    return base64.urlsafe_b64encode(f"{time}:{name}".encode()).decode()


def decode_token(token: str) -> tuple[int, str] | None:
    """Where the page before ended; None for the first page.

    Raises:
        EverstepError: INVALID_REQUEST when this is no token of ours.
    """
    if not token:
        return None
    try:
        time, separator, name = (
            base64.b64decode(token, b"-_", validate=True).decode().partition(":")
        )
        if not separator or abs(int(time)) >= 2**63:
            raise ValueError
        return int(time), name
    except (binascii.Error, ValueError):
        raise EverstepError(
            Reason.INVALID_REQUEST,
            "page_token is not one that a list gave; leave it empty for the first page",
            violations=[FieldViolation("page_token", "not a token of this service")],
        ) from None
