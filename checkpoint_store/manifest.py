"""The manifest: the JSON that makes blobs a checkpoint. It is written last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from checkpoint_store.digests import Buffer, canonical_json, is_digest, parse_canonical_json
from checkpoint_store.lineage import LineageEvent
from checkpoint_store.safetensors_layout import ITEM_SIZES, TensorSpec
from everstep.errors import EverstepError, Reason

FORMAT: Final = "everstep-checkpoint"
FORMAT_VERSION: Final = 1

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TRIGGER: Final = re.compile(r"[A-Z][A-Z_]{0,62}")
_KEY: Final = re.compile(
    r"operations/[a-z0-9][a-z0-9-]{0,63}/attempts/[0-9]{1,9}/checkpoints/[a-z0-9][a-z0-9-]{0,63}"
    r"\.json"
)
_TENSOR_KEYS: Final = frozenset({"name", "dtype", "shape", "offset", "length", "digest"})
_BLOB_KEYS: Final = frozenset({"kind", "digest", "length", "tensors"})
_KEYS: Final = frozenset(
    {
        "format", "format_version", "checkpoint_id", "operation_id", "attempt", "epoch", "step",
        "trigger", "create_time", "parent", "blobs", "state", "digests", "metrics", "monitor",
        "monitor_value", "strategy", "strategy_digest", "data_digest", "fingerprint", "lineage",
    }
)  # fmt: skip

#: What is not a manifest's field as it stands.
_OWN_CONTENT: Final = frozenset({"format", "blobs", "metrics", "lineage"})


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a blob."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    #: From the blob's first byte; in bytes.
    offset: int
    length: int
    digest: str


@dataclass(frozen=True)
class BlobEntry:
    """One safetensors file of a checkpoint."""

    #: weights, best_weights, optimizer, ...
    kind: str
    #: BLAKE3 of the whole file: its name in the store.
    digest: str
    #: In bytes.
    length: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything a checkpoint is, except for the bytes of its tensors."""

    checkpoint_id: str
    operation_id: str
    attempt: int
    #: The epoch that the next step belongs to.
    epoch: int
    #: Optimizer steps taken.
    step: int
    #: The name of a CheckpointTrigger without its prefix, as in `PERIODIC`.
    trigger: str
    #: RFC 3339.
    create_time: str
    #: Key of the manifest that this training went on from, or took before this one.
    parent: str | None
    blobs: tuple[BlobEntry, ...]
    #: Counters, history, scheduler, ...: the state that is no tensor. Holds no wall-clock time.
    state: dict[str, Any]
    #: Digests by kind; `history` and `progress` of the small state; `state` over all of them.
    digests: dict[str, str]
    #: Of the last completed epoch.
    metrics: dict[str, float]
    #: The monitored metric; empty when nothing is monitored.
    monitor: str
    monitor_value: float | None
    #: A resolved TrainingStrategy as plain dicts.
    strategy: dict[str, Any]
    strategy_digest: str
    data_digest: str
    #: The environment that the bytes depend on.
    fingerprint: dict[str, str]
    #: What happened to the state beside training, oldest first.
    lineage: tuple[LineageEvent, ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def logical_bytes(self) -> int:
        """Bytes of the state's blobs, each counted as often as it is named."""
        return sum(blob.length for blob in self.blobs)

    @property
    def key(self) -> str:
        """Where this manifest stands in the store."""
        return manifest_key(self.operation_id, self.attempt, self.checkpoint_id)

    def to_bytes(self) -> bytes:
        """Canonical JSON; equal manifests give equal bytes.

        Raises:
            TypeError, ValueError: When state, strategy or metrics hold what JSON cannot.
        """
        content = {name: getattr(self, name) for name in _KEYS - _OWN_CONTENT}
        content["format"] = FORMAT
        content["metrics"] = {name: float(value) for name, value in self.metrics.items()}
        content["lineage"] = [event.to_json() for event in self.lineage]
        content["blobs"] = [_blob_content(blob) for blob in self.blobs]
        return canonical_json(content)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Manifest:
        """The manifest that `to_bytes` wrote; anything else is refused.

        Raises:
            EverstepError: CHECKPOINT_CORRUPT.
        """
        try:
            return _parse(data)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EverstepError(
                Reason.CHECKPOINT_CORRUPT,
                f"not a valid manifest of a checkpoint: {reason}; use another checkpoint",
            ) from None


def manifest_key(operation_id: str, attempt: int, checkpoint_id: str) -> str:
    """Where a manifest stands, as in `operations/ID/attempts/N/checkpoints/CHECKPOINT_ID.json`.

    Raises:
        ValueError: When an id holds more than lower-case letters, digits and `-`.
    """
    for text in (operation_id, checkpoint_id):
        if not _NAME.fullmatch(text):
            raise ValueError(f"not an id: {text[:80]!r}")
    if not 0 <= attempt < 10**9:
        raise ValueError(f"not an attempt: {attempt}")
    return f"operations/{operation_id}/attempts/{attempt}/checkpoints/{checkpoint_id}.json"


def is_manifest_key(key: str) -> bool:
    """Whether a key of the store names a manifest."""
    return _KEY.fullmatch(key) is not None


def _blob_content(blob: BlobEntry) -> dict[str, Any]:
    return {
        "kind": blob.kind,
        "digest": blob.digest,
        "length": blob.length,
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "offset": tensor.offset,
                "length": tensor.length,
                "digest": tensor.digest,
            }
            for tensor in blob.tensors
        ],
    }


def _parse(data: Buffer) -> Manifest:
    content = parse_canonical_json(data)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("it does not say that it is one")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"its format version is {content.get('format_version')!r}, this Everstep reads "
            f"{FORMAT_VERSION}"
        )
    _check_keys("the manifest", content, _KEYS)
    parent, monitor_value = content["parent"], content["monitor_value"]
    if parent is not None and not is_manifest_key(_text(content, "parent")):
        raise ValueError("parent is no manifest's key")
    if monitor_value is not None:
        monitor_value = _number("monitor_value", monitor_value)
    manifest = Manifest(
        checkpoint_id=_text(content, "checkpoint_id", _NAME),
        operation_id=_text(content, "operation_id", _NAME),
        attempt=_size(content, "attempt"),
        epoch=_size(content, "epoch"),
        step=_size(content, "step"),
        trigger=_text(content, "trigger", _TRIGGER),
        create_time=_moment(content, "create_time"),
        parent=parent,
        blobs=tuple(_parse_blob(item) for item in _items(content, "blobs")),
        state=_mapping(content, "state"),
        digests=_texts(content, "digests"),
        metrics={
            name: _number(name, value) for name, value in _mapping(content, "metrics").items()
        },
        monitor=_text(content, "monitor"),
        monitor_value=monitor_value,
        strategy=_mapping(content, "strategy"),
        strategy_digest=_text(content, "strategy_digest"),
        data_digest=_text(content, "data_digest"),
        fingerprint=_texts(content, "fingerprint"),
        lineage=tuple(LineageEvent.from_json(event) for event in _items(content, "lineage")),
    )
    lengths = {(blob.digest, blob.length) for blob in manifest.blobs}
    if len(lengths) != len({digest for digest, _ in lengths}):
        raise ValueError("one blob is named with two lengths")
    if manifest.to_bytes() != data:
        raise ValueError("it is not in canonical form")
    return manifest


def _parse_blob(item: Any) -> BlobEntry:
    _check_keys("a blob", item, _BLOB_KEYS)
    length = _size(item, "length")
    tensors = tuple(_parse_tensor(entry, length) for entry in _items(item, "tensors"))
    return BlobEntry(_text(item, "kind", _KIND), _digest(item), length, tensors)


def _parse_tensor(item: Any, blob_length: int) -> TensorEntry:
    _check_keys("a tensor", item, _TENSOR_KEYS)
    name, dtype = _text(item, "name"), _text(item, "dtype")
    shape = _items(item, "shape")
    if dtype not in ITEM_SIZES or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"tensor {name!r} has no valid dtype and shape")
    offset, length = _size(item, "offset"), _size(item, "length")
    if length != TensorSpec(name, dtype, tuple(shape)).length or offset + length > blob_length:
        raise ValueError(f"tensor {name!r} does not fit its place")
    return TensorEntry(name, dtype, tuple(shape), offset, length, _digest(item))


def _check_keys(subject: str, content: Any, keys: frozenset[str]) -> None:
    if not isinstance(content, dict) or content.keys() != keys:
        raise ValueError(f"{subject} needs exactly {', '.join(sorted(keys))}")


def _text(content: Mapping[str, Any], key: str, pattern: re.Pattern[str] | None = None) -> str:
    value = content[key]
    if not isinstance(value, str) or (pattern is not None and not pattern.fullmatch(value)):
        raise ValueError(f"{key} is no valid text")
    return value


def _digest(content: Mapping[str, Any]) -> str:
    digest = _text(content, "digest")
    if not is_digest(digest):
        raise ValueError("digest is no BLAKE3 in hexadecimal")
    return digest


def _moment(content: Mapping[str, Any], key: str) -> str:
    text = _text(content, key)
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{key} names no time zone")
    return text


def _size(content: Mapping[str, Any], key: str) -> int:
    value = content[key]
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is no size or count")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) is not float:
        raise ValueError(f"{name} is no number")
    return value


def _items(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content[key]
    if not isinstance(value, list):
        raise TypeError(f"{key} is no list")
    return value


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content[key]
    if not isinstance(value, dict):
        raise TypeError(f"{key} is no object")
    return value


def _texts(content: Mapping[str, Any], key: str) -> dict[str, str]:
    value = _mapping(content, key)
    if not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} holds more than texts")
    return value
