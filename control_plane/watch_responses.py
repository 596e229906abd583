"""WatchOperationResponse as bytes, made of stored entries that are never parsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from everstep.control.v1.operations_pb2 import EventBatch, WatchOperationResponse
from everstep.rpc.repeated import RepeatedField

_EVENTS: Final = RepeatedField(EventBatch.EVENTS_FIELD_NUMBER)
#: A message field that is there once is written as one that is repeated.
_BATCH: Final = RepeatedField(WatchOperationResponse.BATCH_FIELD_NUMBER)


@dataclass(frozen=True)
class Page:
    """Entries of a log that follow each other, as one response."""

    response: bytes
    #: The sequence of the last one.
    last_sequence: int


def batch_response(entries: Sequence[bytes]) -> bytes:
    """The response with these entries, each an OperationEvent's bytes."""
    return _BATCH.joined([_EVENTS.joined(entries)])


def mark_response(through_sequence: int) -> bytes:
    """The response that says how far the log is."""
    return WatchOperationResponse(through_sequence=through_sequence).SerializeToString()
