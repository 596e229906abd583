"""What we lay out, safetensors reads; what it writes, we read; what is malformed is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoint_store.safetensors_layout import (
    ALIGNMENT,
    ITEM_SIZES,
    GroupLayout,
    PlacedTensor,
    TensorSpec,
    parse_header,
    plan_group,
    write_merged,
)
from everstep.errors import EverstepError, Reason
from tests.store.states import fill, make_state

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
SPECS = st.lists(
    st.builds(
        TensorSpec,
        NAMES,
        st.sampled_from(["F32", "F64", "I64", "U8", "BOOL", "BF16", "F16", "I32"]),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    unique_by=lambda spec: spec.name,
    max_size=8,
)


def safetensors_file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def parsed(content: bytes) -> tuple[PlacedTensor, ...] | None:
    """The tensors; None where the file is refused as corrupt."""
    try:
        return parse_header(memoryview(content))
    except EverstepError as error:
        if error.reason is not Reason.CHECKPOINT_CORRUPT:
            raise
        return None


def malformed(content: bytes) -> str:
    with pytest.raises(EverstepError) as caught:
        parse_header(memoryview(content))
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT
    assert "\n" not in caught.value.message
    return caught.value.message


@given(SPECS, st.integers(1, 200))
def test_every_blob_of_a_layout_is_a_safetensors_file(
    specs: list[TensorSpec], max_blob_bytes: int
) -> None:
    state = fill({"weights": specs}, {"weights": 1}, max_blob_bytes)
    found: dict[str, TensorSpec] = {}
    end = 0
    for blob in state.layout.blobs:
        content = bytes(state.memory[blob.offset : blob.offset + blob.length])
        assert blob.offset % ALIGNMENT == len(blob.header) % ALIGNMENT == 0
        assert blob.offset >= end
        end = blob.offset + blob.length
        assert len(blob.tensors) == 1 or blob.length - len(blob.header) <= max_blob_bytes
        loaded = safetensors.torch.load(content)
        for tensor in parse_header(memoryview(content)):
            spec = tensor.spec
            found[spec.name] = spec
            assert tuple(loaded[spec.name].shape) == spec.shape
            assert (blob.offset + tensor.offset) % ITEM_SIZES[spec.dtype] == 0
            raw = loaded[spec.name].reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw == content[tensor.offset : tensor.offset + tensor.length]
    assert end == state.layout.total_bytes
    assert found == {spec.name: spec for spec in specs}


@given(SPECS)
def test_the_order_of_the_specs_does_not_show(specs: list[TensorSpec]) -> None:
    assert plan_group("weights", specs) == plan_group("weights", specs[::-1])


def test_a_large_tensor_has_a_file_alone_and_no_tensors_have_none() -> None:
    specs = [
        TensorSpec("a", "F32", (4,)),
        TensorSpec("large", "F32", (100,)),
        TensorSpec("z", "F32", (4,)),
    ]
    layout = plan_group("weights", specs, offset=1000, max_blob_bytes=64)
    names = [[tensor.spec.name for tensor in blob.tensors] for blob in layout.blobs]
    assert names == [["a"], ["large"], ["z"]]
    assert layout.blobs[0].offset == 1024
    assert plan_group("weights", [], offset=1000) == GroupLayout((), 1000)


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("a", "F31", (1,)),
        TensorSpec("a", "F32", (-1,)),
        TensorSpec("__metadata__", "F32", (1,)),
    ],
)
def test_specs_that_no_file_can_hold_are_refused(spec: TensorSpec) -> None:
    with pytest.raises(ValueError, match="weights"):
        plan_group("weights", [spec])


def test_files_that_safetensors_writes_are_read() -> None:
    arrays: dict[str, NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(3, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float64),
        "scalar": np.array(7, np.uint8),
    }
    content = safetensors.numpy.save(arrays, {"made by": "safetensors"})
    tensors = {tensor.spec.name: tensor for tensor in parse_header(memoryview(content))}
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.spec.shape == array.shape
        assert content[tensor.offset : tensor.offset + tensor.length] == array.tobytes()


def test_every_dtype_that_torch_and_safetensors_share() -> None:
    tensors = {
        str(dtype): torch.zeros(2, dtype=dtype)
        for dtype in (
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
            torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
            torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64,
        )
    }  # fmt: skip
    content = safetensors.torch.save(tensors)
    found = {tensor.spec.name: tensor.length for tensor in parse_header(memoryview(content))}
    assert found == {name: 2 * tensor.element_size() for name, tensor in tensors.items()}


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, "begin where"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, "begin where"),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, "begin where"),
        ({"a": ENTRY}, "the file at"),
        ({"a": {**ENTRY, "shape": [3]}}, "needs 12 bytes"),
        ({"a": {**ENTRY, "dtype": "F64"}}, "needs 16 bytes"),
        ({"a": {**ENTRY, "dtype": "object"}}, "unknown dtype"),
        ({"a": {**ENTRY, "dtype": ["F32"]}}, "unknown dtype"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "sizes"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, "sizes"),
        ({"a": {**ENTRY, "shape": [-2]}}, "sizes"),
        ({"a": {**ENTRY, "shape": 2}}, "sizes"),
        ({"a": {**ENTRY, "data_offsets": [0, 8, 8]}}, "two sizes"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, "needs 8 bytes"),
        ({"a": {**ENTRY, "data_offsets": [2**64, 2**64 + 8]}}, "two sizes"),
        ({"a": {**ENTRY, "shape": [2**62, 2**62, 0, 2]}}, "needs 0 bytes"),
        ({"a": {**ENTRY, "more": 1}}, "no more"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "no more"),
        ({"a": [1]}, "no more"),
        ({"__metadata__": {"a": 1}}, "texts"),
        ({"__metadata__": [1]}, "texts"),
        ({"\ud800": ENTRY}, "surrogates"),
    ],
)
def test_headers_that_do_not_fit_are_refused(header: Any, said: str) -> None:
    assert said in malformed(safetensors_file(json.dumps(header).encode(), bytes(20)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 100_000_001) + bytes(100),
        struct.pack("<Q", 2**64 - 1) + b"{}",
        safetensors_file(b"{}", b"")[:-1],
        safetensors_file(b"[]", b""),
        safetensors_file(b" {}", b""),
        safetensors_file(b"{", b""),
        safetensors_file(b"{}x", b""),
        safetensors_file(b"", b""),
        safetensors_file(b"\xff\xff", b""),
        safetensors_file(b'{"a":' * 50_000, b""),
        safetensors_file(b'{"a":NaN}', b""),
        safetensors_file(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
    ],
)
def test_files_that_are_none_are_refused(content: bytes) -> None:
    malformed(content)


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_file_is_refused_or_read_as_safetensors_reads_it(data: st.DataObject) -> None:
    state = make_state(rows=3)
    content = bytearray(next(iter(state.kinds().values())))
    (header_length,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 8 + header_length - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0129[]{}",:-'))
    tensors = parsed(bytes(content))
    if tensors is None:
        return
    loaded = dict(safetensors.deserialize(bytes(content)))  # type: ignore[no-untyped-call]
    assert loaded.keys() == {tensor.spec.name for tensor in tensors}
    for tensor in tensors:
        theirs = loaded[tensor.spec.name]
        assert theirs["dtype"] == tensor.spec.dtype
        assert tuple(theirs["shape"]) == tensor.spec.shape
        assert bytes(theirs["data"]) == content[tensor.offset : tensor.offset + tensor.length]


def test_blobs_are_joined_into_one_file(tmp_path: Path) -> None:
    state = make_state()
    parts = [part for name, part in state.kinds().items() if name.startswith("weights")]
    assert len(parts) > 1
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"what was there before")
    write_merged(path, parts, {"checkpoint": "ck-12"})
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == {"body.weight", "body.bias", "head.steps"}
    for part in parts:
        for name, array in safetensors.numpy.load(part).items():
            assert loaded[name].tobytes() == array.tobytes()
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata() == {"checkpoint": "ck-12"}
    assert list(tmp_path.iterdir()) == [path]


def test_blobs_that_share_a_name_are_not_joined(tmp_path: Path) -> None:
    part = next(iter(make_state().kinds().values()))
    with pytest.raises(EverstepError, match="two blobs hold"):
        write_merged(tmp_path / "out.safetensors", [part, part])
    assert list(tmp_path.iterdir()) == []
