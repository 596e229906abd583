"""Where the control plane is."""

from __future__ import annotations

import os
from typing import Final

from everstep.errors import EverstepError, Reason

DEFAULT_ADDRESS: Final = "127.0.0.1:7070"


def chosen_address(given: str, otherwise: str = DEFAULT_ADDRESS) -> str:
    """The address that is given, that of EVERSTEP_ADDRESS, or another one.

    Raises:
        EverstepError: INVALID_REQUEST when it is not host:port.
    """
    address = given or os.environ.get("EVERSTEP_ADDRESS") or otherwise
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise EverstepError(
            Reason.INVALID_REQUEST,
            f"{address!r} is no address; write host:port, as in {DEFAULT_ADDRESS}",
        )
    return address
