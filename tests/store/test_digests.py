"""Canonical JSON has one text for a value; digests tell apart what differs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_store.digests import (
    blob_digest,
    blob_key,
    canonical_json,
    kind_digest,
    parse_canonical_json,
    tensor_digest,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text().filter(lambda key: key != "$float"), inner)
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equality to the bit: of types, NaN and the sign of zero too."""
    return repr(left) == repr(right)


@given(JSON_VALUES)
def test_a_value_survives_exactly(value: Any) -> None:
    read = parse_canonical_json(canonical_json(value))
    if isinstance(value, dict):
        assert read.keys() == value.keys()
        assert all(canonical_json(read[key]) == canonical_json(value[key]) for key in value)
    else:
        assert canonical_json(read) == canonical_json(value)
    if isinstance(value, float):
        assert same(read, value)


@given(st.dictionaries(st.text().filter(lambda key: key != "$float"), st.integers()))
def test_the_order_of_keys_does_not_show(content: dict[str, int]) -> None:
    backwards = dict(reversed(content.items()))
    assert canonical_json(content) == canonical_json(backwards)


def test_floats_that_json_cannot_write() -> None:
    text = canonical_json([math.nan, math.inf, -math.inf, -0.0, 1.0])
    assert text == b'[{"$float":"nan"},{"$float":"inf"},{"$float":"-inf"},-0.0,1.0]'
    assert same(parse_canonical_json(text), [math.nan, math.inf, -math.inf, -0.0, 1.0])


@pytest.mark.parametrize("value", [{1: 2}, b"x", {1, 2}, object(), {"a": [1j]}])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_key_that_stands_for_floats_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\$float"):
        canonical_json({"$float": "nan"})


def test_content_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="deep"):
        canonical_json(endless)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1] 2", b"NaN", b"[Infinity]", b'{"a":1,"a":1}', b'{"$float":"x"}',
     b'{"$float":"nan","a":1}', b"\xff", b"[" * 100_000],
)  # fmt: skip
def test_other_texts_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_canonical_json(text)


def test_a_tensor_digest_is_of_name_dtype_shape_and_bytes() -> None:
    data = bytes(8)
    digests = {
        tensor_digest("a", "F32", (2,), data),
        tensor_digest("b", "F32", (2,), data),
        tensor_digest("a", "I32", (2,), data),
        tensor_digest("a", "F32", (2, 1), data),
        tensor_digest("a", "F32", (2,), b"\1" + data[1:]),
    }
    assert len(digests) == 5
    assert tensor_digest("a", "F32", (2,), memoryview(data)) in digests


def test_a_kind_digest_does_not_depend_on_order_but_on_names() -> None:
    assert kind_digest([("a", "1"), ("b", "2")]) == kind_digest([("b", "2"), ("a", "1")])
    assert kind_digest([("a", "1"), ("b", "2")]) != kind_digest([("a", "2"), ("b", "1")])
    with pytest.raises(ValueError, match="twice"):
        kind_digest([("a", "1"), ("a", "1")])


def test_a_blob_is_named_by_its_digest() -> None:
    digest = blob_digest(b"")
    assert digest == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blob_key(digest) == f"blobs/af/{digest}"
    with pytest.raises(ValueError, match="digest"):
        blob_key("../" + digest[3:])
