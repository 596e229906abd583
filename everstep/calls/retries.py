"""Unary calls are said again while the control plane cannot be reached; a watch sees to itself."""

from __future__ import annotations

import json
from typing import Any, Final

from everstep.calls.requests import CHECKPOINTS, OPERATIONS, TRAINERS
from everstep.rpc.options import Options

_POLICY: Final = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG: Final[dict[str, Any]] = {
    "methodConfig": [
        {
            "name": [{"service": service} for service in (OPERATIONS, CHECKPOINTS, TRAINERS)],
            "retryPolicy": _POLICY,
        },
        {"name": [{"service": OPERATIONS, "method": "WatchOperation"}]},
    ],
    # With few tokens, retries stop silently after a handful of failures.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
RETRY_OPTIONS: Final[Options] = [("grpc.service_config", json.dumps(_SERVICE_CONFIG))]
