"""A state's tensors as safetensors files: where each stands in a slot, and reading that back.

A file is eight bytes of header length (little-endian), the header as JSON, and the tensors' bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

from checkpoint_store.digests import Buffer
from everstep.errors import EverstepError, Reason

#: Bytes of one element, by safetensors' name of the dtype.
ITEM_SIZES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
#: Files begin, and their tensors' bytes begin, at multiples of this.
ALIGNMENT: Final = 64
#: safetensors refuses longer headers; so do we.
MAX_HEADER_BYTES: Final = 100_000_000
DEFAULT_MAX_BLOB_BYTES: Final = 64 * 1024 * 1024
_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = "__metadata__"
_TENSOR_KEYS: Final = {"dtype", "shape", "data_offsets"}
_MAX_DIMENSIONS: Final = 64
_MAX_BYTES: Final = 2**63 - 1


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its values."""

    name: str
    #: In safetensors' words, as in `F32`.
    dtype: str
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """In bytes."""
        return ITEM_SIZES[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor and where its bytes stand in a buffer."""

    spec: TensorSpec
    offset: int
    length: int


@dataclass(frozen=True)
class BlobLayout:
    """One safetensors file in a slot."""

    kind: str
    #: Where the file begins in the slot, and its length, in bytes.
    offset: int
    length: int
    #: The file's first bytes, up to the first tensor's.
    header: bytes
    #: In the order of their bytes; offsets count from the slot's beginning.
    tensors: tuple[PlacedTensor, ...]


@dataclass(frozen=True)
class GroupLayout:
    """Tensors of one kind in a slot."""

    blobs: tuple[BlobLayout, ...]
    #: Of the slot, with what stands before them.
    total_bytes: int


def plan_group(
    kind: str,
    specs: Sequence[TensorSpec],
    offset: int = 0,
    max_blob_bytes: int = DEFAULT_MAX_BLOB_BYTES,
) -> GroupLayout:
    """Places tensors of one kind in files, one after another.

    The same specs give the same bytes of headers, whatever their order. A tensor larger than
    `max_blob_bytes` has a file of its own; no tensors have none.

    Args:
        kind: As in `weights`.
        specs: The tensors.
        offset: Bytes of the slot that are taken; `total_bytes` includes them.
        max_blob_bytes: Bytes of tensors in one file.

    Raises:
        ValueError: For an unknown dtype, a negative size, or a name given twice.
    """
    blobs: list[BlobLayout] = []
    total = offset
    for chunk in _chunks(_sorted_specs(kind, specs), max_blob_bytes):
        blob = _place(kind, align(total), chunk)
        blobs.append(blob)
        total = blob.offset + blob.length
    return GroupLayout(tuple(blobs), total)


def align(offset: int) -> int:
    """The offset, or the next that is a multiple of `ALIGNMENT`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def parse_header(buffer: memoryview) -> tuple[PlacedTensor, ...]:
    """The tensors of a safetensors file, in the order of their bytes.

    Offsets count from the buffer's beginning; every one is inside the buffer. A file that
    safetensors itself would refuse is refused.

    Raises:
        EverstepError: CHECKPOINT_CORRUPT.
    """
    try:
        with memoryview(buffer) as view:
            return _parse_header(view)
    except (ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EverstepError(
            Reason.CHECKPOINT_CORRUPT,
            f"not a valid safetensors file: {reason}; use another checkpoint",
        ) from None


def write_merged(
    path: Path, buffers: Iterable[Buffer], metadata: Mapping[str, str] | None = None
) -> None:
    """Joins safetensors files into one, which appears at `path` complete or not at all.

    Args:
        path: An existing file is replaced.
        buffers: Whole safetensors files.
        metadata: Kept in the header's `__metadata__`.

    Raises:
        EverstepError: CHECKPOINT_CORRUPT for a malformed buffer or a name that two of them hold.
        OSError: When `path` cannot be written.
    """
    parts = [(buffer, tensor) for buffer in buffers for tensor in parse_header(memoryview(buffer))]
    parts.sort(key=lambda part: _order(part[1].spec))
    specs = [tensor.spec for _, tensor in parts]
    twice = next((a.name for a, b in pairwise(sorted(specs, key=_name)) if a.name == b.name), None)
    if twice is not None:
        raise EverstepError(
            Reason.CHECKPOINT_CORRUPT,
            f"two blobs hold a tensor {twice!r}; use another checkpoint",
        )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(_header(specs, metadata))
            for buffer, tensor in parts:
                with memoryview(buffer) as view:
                    file.write(view[tensor.offset : tensor.offset + tensor.length])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sorted_specs(kind: str, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    names: set[str] = set()
    for spec in specs:
        if spec.dtype not in ITEM_SIZES:
            raise ValueError(f"{kind} {spec.name}: safetensors knows no dtype {spec.dtype}")
        if any(size < 0 for size in spec.shape):
            raise ValueError(f"{kind} {spec.name}: a shape of {spec.shape}")
        if spec.name in names or spec.name == _METADATA:
            raise ValueError(f"{kind} {spec.name}: the name is taken")
        names.add(spec.name)
    return sorted(specs, key=_order)


def _order(spec: TensorSpec) -> tuple[int, str, str]:
    """Largest items first, so that every tensor is aligned to its item size."""
    return (-ITEM_SIZES[spec.dtype], spec.dtype, spec.name)


def _name(spec: TensorSpec) -> str:
    return spec.name


def _chunks(specs: Sequence[TensorSpec], max_bytes: int) -> Iterable[list[TensorSpec]]:
    """The specs in their order, cut where the next would make a file too large."""
    chunk: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if chunk and size + spec.length > max_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(spec)
        size += spec.length
    if chunk:
        yield chunk


def _place(kind: str, offset: int, specs: Sequence[TensorSpec]) -> BlobLayout:
    header = _header(specs, None)
    position = offset + len(header)
    tensors = []
    for spec in specs:
        tensors.append(PlacedTensor(spec, position, spec.length))
        position += spec.length
    return BlobLayout(kind, offset, position - offset, header, tuple(tensors))


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON, padded with spaces so that the tensors' bytes begin aligned."""
    content: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for spec in specs:
        end = position + spec.length
        content[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    padded = align(_LENGTH.size + len(text)) - _LENGTH.size
    if padded > MAX_HEADER_BYTES:
        raise ValueError(f"a safetensors header of {padded} bytes; the most is {MAX_HEADER_BYTES}")
    return _LENGTH.pack(padded) + text.ljust(padded)


def _parse_header(view: memoryview) -> tuple[PlacedTensor, ...]:
    if len(view) < _LENGTH.size:
        raise ValueError(f"{len(view)} bytes are too few")
    (length,) = _LENGTH.unpack(view[: _LENGTH.size])
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes is too long")
    begin = _LENGTH.size + length
    if begin > len(view):
        raise ValueError("the header is longer than the file")
    text = bytes(view[_LENGTH.size : begin])
    if not text.startswith(b"{"):
        raise ValueError("the header is not a JSON object")
    content = json.loads(
        text.decode("utf-8"), object_pairs_hook=_unique_object, parse_constant=_refuse_constant
    )
    _check_metadata(content.pop(_METADATA, None))
    tensors = sorted(
        (_parse_tensor(name, entry, begin) for name, entry in content.items()),
        key=lambda tensor: (tensor.offset, tensor.length),
    )
    position = begin
    for tensor in tensors:
        if tensor.offset != position:
            raise ValueError(f"tensor {tensor.spec.name!r} does not begin where the last one ends")
        position += tensor.length
    if position != len(view):
        raise ValueError(f"the tensors end at byte {position}, the file at {len(view)}")
    return tuple(tensors)


def _parse_tensor(name: str, entry: Any, begin: int) -> PlacedTensor:
    name.encode("utf-8")
    if not isinstance(entry, dict) or entry.keys() != _TENSOR_KEYS:
        raise ValueError(f"tensor {name!r} needs dtype, shape and data_offsets, and no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise ValueError(f"tensor {name!r} has an unknown dtype")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"the shape of tensor {name!r} is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"the data_offsets of tensor {name!r} are no two sizes")
    start, end = offsets
    spec = TensorSpec(name, dtype, tuple(shape))
    if start > end or end - start != spec.length:
        raise ValueError(f"tensor {name!r} needs {spec.length} bytes, not {end - start}")
    return PlacedTensor(spec, begin + start, spec.length)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= _MAX_BYTES for item in value
    )


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ holds more than texts")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is given twice in the header")
    return content


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
