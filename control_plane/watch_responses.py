"""WatchOperationResponse as bytes, made of stored entries that are never parsed.

A repeated message field is, for each message, the field's tag, the message's length and its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from everstep.control.v1.operations_pb2 import EventBatch, WatchOperationResponse

#: The wire type of a message: its length comes first.
_LENGTH_DELIMITED: Final = 2


@dataclass(frozen=True)
class Page:
    """Entries of a log that follow each other, as one response."""

    response: bytes
    #: The sequence of the last one.
    last_sequence: int


def batch_response(entries: Sequence[bytes]) -> bytes:
    """The response with these entries, each an OperationEvent's bytes."""
    pieces: list[bytes] = []
    for entry in entries:
        pieces += (_heading(len(entry)), entry)
    batch = b"".join(pieces)
    return _BATCH_TAG + _varint(len(batch)) + batch


def mark_response(through_sequence: int) -> bytes:
    """The response that says how far the log is."""
    return WatchOperationResponse(through_sequence=through_sequence).SerializeToString()


def _tag(field_number: int) -> bytes:
    return _varint(field_number << 3 | _LENGTH_DELIMITED)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_BATCH_TAG: Final = _tag(WatchOperationResponse.BATCH_FIELD_NUMBER)
_ENTRY_TAG: Final = _tag(EventBatch.EVENTS_FIELD_NUMBER)
#: What stands before an entry, by its length: most entries are short.
_HEADINGS: Final = tuple(_ENTRY_TAG + _varint(length) for length in range(2048))


def _heading(length: int) -> bytes:
    if length < len(_HEADINGS):
        return _HEADINGS[length]
    return _ENTRY_TAG + _varint(length)
