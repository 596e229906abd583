"""What a failed call is to its caller."""

from __future__ import annotations

import grpc

from everstep.errors import EverstepError, Reason
from everstep.rpc.status import error_from_call


def call_error(failure: grpc.RpcError, address: str) -> EverstepError:
    """The error that a failed call carries; where nobody answered, it says what to do."""
    error = error_from_call(failure)
    if error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED):
        return EverstepError(
            Reason.SERVICE_UNAVAILABLE,
            f"no control plane answers at {address}; run `everstep up`, or say where "
            "it is with --address or EVERSTEP_ADDRESS",
        )
    return error
