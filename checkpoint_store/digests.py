"""Names for bytes: canonical JSON, and the BLAKE3 digests of blobs, tensors and states.

Every digest is BLAKE3 in 64 hexadecimal digits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from blake3 import blake3

Buffer: TypeAlias = bytes | bytearray | memoryview

#: The key of the object that stands for a float JSON has no word for.
FLOAT_KEY: Final = "$float"
_NON_FINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
#: Deeper content is refused, in both directions, long before Python's stack ends.
MAX_DEPTH: Final = 100


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, shortest exact floats.

    NaN and the infinities become `{"$float": "nan" | "inf" | "-inf"}`; tuples become arrays.

    Raises:
        TypeError: For what JSON has no word for, keys that are no strings among it.
        ValueError: For a key `$float`, or content nested more than `MAX_DEPTH` deep.
    """
    plain = _plain(value, 0)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse_canonical_json(data: Buffer) -> Any:
    """The value of a JSON text that `canonical_json` wrote.

    Raises:
        ValueError: For anything else than one JSON value: a key given twice, a bare NaN, ...
    """
    try:
        return json.loads(
            bytes(data).decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def blob_digest(data: Buffer) -> str:
    """The digest of bytes: the name of the blob that holds them."""
    return blake3(data).hexdigest()


def json_digest(value: Any) -> str:
    """The digest of a value's canonical JSON."""
    return blob_digest(canonical_json(value))


def blob_key(digest: str) -> str:
    """Where a blob stands in the store, as in `blobs/ab/abcdef...`.

    Raises:
        ValueError: When this is no digest.
    """
    if not is_digest(digest):
        raise ValueError(f"not a BLAKE3 digest in hexadecimal: {digest[:80]!r}")
    return f"blobs/{digest[:2]}/{digest}"


def is_digest(text: str) -> bool:
    """Whether a text is a BLAKE3 digest in lower-case hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


def tensor_digest(name: str, dtype: str, shape: Sequence[int], data: Buffer) -> str:
    """The digest of a tensor: of its name, dtype, shape and raw bytes."""
    header = canonical_json([name, dtype, list(shape)])
    hasher = blake3(len(header).to_bytes(8, "little"))
    hasher.update(header)
    hasher.update(data)
    return hasher.hexdigest()


def kind_digest(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of named digests, whatever order they come in.

    Raises:
        ValueError: When a name comes twice.
    """
    listed = sorted(entries)
    if len({name for name, _ in listed}) != len(listed):
        raise ValueError("a name is given twice in one digest")
    return json_digest(listed)


def _plain(value: Any, depth: int) -> Any:
    """The value in JSON's own types, checked."""
    if depth > MAX_DEPTH:
        raise ValueError(f"JSON content nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {FLOAT_KEY: str(float(value))}
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    raise TypeError(f"JSON has no word for a {type(value).__name__}")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key of JSON is a string, not a {type(key).__name__}")
    if key == FLOAT_KEY:
        raise ValueError(f"the key {FLOAT_KEY} stands for floats that JSON cannot write")
    return key


def _object(pairs: list[tuple[str, Any]]) -> Any:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is given twice in one JSON object")
    if FLOAT_KEY not in content:
        return content
    word = content[FLOAT_KEY]
    if len(content) != 1 or not isinstance(word, str) or word not in _NON_FINITE:
        raise ValueError(f"{FLOAT_KEY} stands alone, with nan, inf or -inf")
    return _NON_FINITE[word]


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
