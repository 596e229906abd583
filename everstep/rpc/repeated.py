"""Messages joined to one that repeats them, as bytes that are never parsed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: The wire type of a message: its length comes first.
_LENGTH_DELIMITED: Final = 2
#: Headings are made before for messages that are shorter: most are.
_SHORT_BYTES: Final = 2048


class RepeatedField:
    """A repeated message field: for each message the field's tag, the message's length, its bytes.

    Bytes of a message's fields, one after another, are that message: what `joined` gives may stand
    behind any other fields of it.

    Args:
        number: Of the field.
    """

    def __init__(self, number: int) -> None:
        self._tag = _varint(number << 3 | _LENGTH_DELIMITED)
        self._headings = tuple(self._tag + _varint(length) for length in range(_SHORT_BYTES))

    def joined(self, messages: Iterable[bytes]) -> bytes:
        """The field with these messages."""
        pieces: list[bytes] = []
        for message in messages:
            pieces += (self._heading(len(message)), message)
        return b"".join(pieces)

    def _heading(self, length: int) -> bytes:
        if length < _SHORT_BYTES:
            return self._headings[length]
        return self._tag + _varint(length)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
