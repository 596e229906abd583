"""A manifest is read strictly: exactly what was written, or CHECKPOINT_CORRUPT."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_store.checkpoints import commit_checkpoint
from checkpoint_store.digests import canonical_json, parse_canonical_json
from checkpoint_store.local_blobs import LocalBlobStore
from checkpoint_store.manifest import Manifest, is_manifest_key, manifest_key
from everstep.errors import EverstepError, Reason
from tests.store.states import STATE, make_state


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    store = LocalBlobStore(tmp_path_factory.mktemp("store"))
    store.set_up()
    state = make_state()
    draft = state.draft(metrics={"val_loss": float("nan"), "accuracy": 1})
    committed = commit_checkpoint(store, draft, memoryview(state.memory))
    return store.get(committed.manifest_key)


def corrupt(data: bytes) -> str:
    with pytest.raises(EverstepError) as caught:
        Manifest.from_bytes(data)
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_manifest_survives(written: bytes) -> None:
    manifest = Manifest.from_bytes(written)
    assert manifest.to_bytes() == written
    assert manifest.key == "operations/op-1/attempts/1/checkpoints/ck-12.json"
    assert canonical_json(manifest.state) == canonical_json(STATE)
    assert manifest.metrics["accuracy"] == 1.0
    state = make_state()
    assert manifest.logical_bytes == sum(blob.length for blob in state.layout.blobs)
    placed = {
        (blob.kind, tensor.spec.name): (tensor.spec.dtype, tensor.spec.shape, tensor.length)
        for blob in state.layout.blobs
        for tensor in blob.tensors
    }
    assert placed == {
        (blob.kind, tensor.name): (tensor.dtype, tensor.shape, tensor.length)
        for blob in manifest.blobs
        for tensor in blob.tensors
    }


def test_every_field_is_needed_and_no_other_is_taken(written: bytes) -> None:
    content = parse_canonical_json(written)
    for key in content:
        corrupt(canonical_json({k: v for k, v in content.items() if k != key}))
    corrupt(canonical_json(content | {"more": 1}))
    for part in (content["blobs"][0], content["blobs"][0]["tensors"][0]):
        for key in list(part):
            value = part.pop(key)
            corrupt(canonical_json(content))
            part[key] = value
        part["more"] = 1
        corrupt(canonical_json(content))
        del part["more"]
    Manifest.from_bytes(canonical_json(content))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"), ("format_version", 2), ("format_version", "1"),
        ("checkpoint_id", "../x"), ("operation_id", "A"), ("attempt", -1), ("attempt", True),
        ("epoch", 1.0), ("step", "3"), ("trigger", "periodic"), ("create_time", "yesterday"),
        ("create_time", "2026-01-02T03:04:05"), ("parent", "../../etc/passwd"), ("parent", 1),
        ("blobs", {}), ("blobs", [1]), ("state", []), ("digests", {"a": 1}),
        ("metrics", {"a": "1"}), ("metrics", {"a": 1}), ("monitor", None), ("monitor_value", 1),
        ("monitor_value", "1"), ("strategy", None), ("fingerprint", {"a": None}),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(written: bytes, key: str, value: Any) -> None:
    corrupt(canonical_json(parse_canonical_json(written) | {key: value}))


def test_a_tensor_outside_its_blob_is_refused(written: bytes) -> None:
    content = parse_canonical_json(written)
    content["blobs"][0]["length"] -= 1
    assert "does not fit" in corrupt(canonical_json(content))


def test_one_blob_has_one_length(written: bytes) -> None:
    content = parse_canonical_json(written)
    content["blobs"][-1]["digest"] = content["blobs"][0]["digest"]
    content["blobs"][-1]["length"] += 64
    assert "two lengths" in corrupt(canonical_json(content))


def test_only_the_canonical_form_is_taken(written: bytes) -> None:
    assert "canonical" in corrupt(json.dumps(json.loads(written)).encode())


@settings(max_examples=200)
@given(st.data())
def test_no_cut_and_no_changed_byte_gives_anything_but_corrupt(
    written: bytes, data: st.DataObject
) -> None:
    whole = written
    if data.draw(st.booleans()):
        corrupt(whole[: data.draw(st.integers(0, len(whole) - 1))])
        return
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = Manifest.from_bytes(bytes(changed))
    except EverstepError as error:
        if error.reason is not Reason.CHECKPOINT_CORRUPT:
            raise
    else:
        assert read.to_bytes() == bytes(changed)


def test_keys_of_manifests() -> None:
    key = manifest_key("op-1", 2, "ck-3")
    assert key == "operations/op-1/attempts/2/checkpoints/ck-3.json"
    assert is_manifest_key(key)
    assert not is_manifest_key("blobs/aa/" + "a" * 64)
    assert not is_manifest_key(key + "\n")
    for arguments in (("../x", 1, "c"), ("op", -1, "c"), ("op", 1, ""), ("op", 1, "a/b")):
        with pytest.raises(ValueError, match="not an"):
            manifest_key(*arguments)
