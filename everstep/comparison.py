"""Two trainings side by side: are they the same, and where do they part?"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from checkpoint_store.manifest import Manifest
from checkpoint_store.safetensors_layout import parse_header
from everstep.calls import requests
from everstep.calls.connection import Connection
from everstep.control.v1.checkpoints_pb2 import CheckpointPart
from everstep.control.v1.operations_pb2 import Operation
from everstep.downloads import fetch
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint

#: Kinds of tensors in the order in which a difference spreads.
_ORDER: Final = ("weights", "average_weights", "optimizer", "best_weights", "trace")
#: Fields of a strategy that change no bits.
_FREE: Final = frozenset({"name", "checkpoint", "data.workers"})


@dataclass(frozen=True)
class Difference:
    """Where two trainings part."""

    #: The first optimizer step that went otherwise, counted from 1; None when none is known of.
    step: int | None
    #: The earliest step of which both have a checkpoint and at which they differ; None: no such.
    compared_step: int | None
    #: Tensors that differ there, as in `weights/0.bias`, in the order of their kinds.
    tensors: tuple[str, ...]
    #: What differs in the strategies and the environments, as in `seed: 1, not 2`.
    causes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two trainings' newest states."""

    left: Checkpoint
    right: Checkpoint
    #: By kind of state, and `state` over all.
    same: Mapping[str, bool]
    #: None when every digest is the same.
    difference: Difference | None


def compare(connection: Connection, left: Operation, right: Operation) -> Comparison:
    """Compares two operations' newest checkpoints, and looks for the first step that differs.

    Raises:
        EverstepError: NO_CHECKPOINT when one has none.
    """
    newest = [_newest(operation) for operation in (left, right)]
    kinds = sorted({kind for checkpoint in newest for kind in checkpoint.digests})
    same = {kind: newest[0].digests[kind] == newest[1].digests[kind] for kind in kinds}
    difference = None if all(same.values()) else _difference(connection, newest[0], newest[1])
    return Comparison(newest[0], newest[1], same, difference)


def _newest(operation: Operation) -> Checkpoint:
    checkpoint = operation.result.checkpoint
    if not checkpoint.reference.checkpoint_id:
        checkpoint = operation.latest_checkpoint
    if not checkpoint.reference.checkpoint_id:
        raise EverstepError(
            Reason.NO_CHECKPOINT,
            f"{operation.operation_id} has no checkpoint yet, so there is no state to compare",
        )
    return checkpoint


def _difference(connection: Connection, left: Checkpoint, right: Checkpoint) -> Difference:
    traces = [_trace(connection, checkpoint) for checkpoint in (left, right)]
    common = min(map(len, traces))
    step = next((n + 1 for n in range(common) if traces[0][n] != traces[1][n]), None)
    pair = _pair_after(connection, left, right, (common if step is None else step))
    manifests = [_manifest(connection, name) for name in (pair or _names(left, right))]
    return Difference(
        step=step,
        compared_step=manifests[0].step if pair else None,
        tensors=_unlike_tensors(*manifests) if pair else (),
        causes=(
            *_unlike(manifests[0].strategy, manifests[1].strategy),
            *_unlike(manifests[0].fingerprint, manifests[1].fingerprint),
            *_unlike({"data": manifests[0].data_digest}, {"data": manifests[1].data_digest}),
        ),
    )


def _pair_after(
    connection: Connection, left: Checkpoint, right: Checkpoint, step: int
) -> tuple[str, str] | None:
    """The earliest checkpoints of both at one step, not before a step, that differ."""
    by_step = [
        {
            checkpoint.step: checkpoint
            for checkpoint in connection.each(requests.list_checkpoints(newest.operation_id))
            if checkpoint.step >= step
        }
        for newest in (left, right)
    ]
    for common in sorted(by_step[0].keys() & by_step[1].keys()):
        one, other = by_step[0][common], by_step[1][common]
        if one.digests != other.digests:
            return _names(one, other)
    return None


def _names(left: Checkpoint, right: Checkpoint) -> tuple[str, str]:
    return left.reference.checkpoint_id, right.reference.checkpoint_id


def _trace(connection: Connection, checkpoint: Checkpoint) -> array[int]:
    """One number for each step that a training has taken."""
    numbers: array[int] = array("q")
    if "trace" not in checkpoint.digests:
        return numbers
    name = checkpoint.reference.checkpoint_id
    urls = requests.get_download_urls(name, CheckpointPart.CHECKPOINT_PART_TRACE)
    chunks: dict[str, bytes] = {}
    for blob in connection.ask(urls).blobs:
        content = fetch(blob)
        for placed in parse_header(memoryview(content)):
            end = placed.offset + placed.spec.length
            chunks[placed.spec.name] = bytes(content[placed.offset : end])
    for _, chunk in sorted(chunks.items()):
        numbers.frombytes(chunk)
    return numbers


def _manifest(connection: Connection, checkpoint_id: str) -> Manifest:
    call = requests.get_download_urls(checkpoint_id, CheckpointPart.CHECKPOINT_PART_MANIFEST)
    (blob,) = connection.ask(call).blobs
    return Manifest.from_bytes(fetch(blob))


def _unlike_tensors(left: Manifest, right: Manifest) -> tuple[str, ...]:
    digests = [
        {
            (blob.kind, tensor.name): tensor.digest
            for blob in manifest.blobs
            for tensor in blob.tensors
        }
        for manifest in (left, right)
    ]
    names = {*digests[0], *digests[1]}
    unlike = [name for name in names if digests[0].get(name) != digests[1].get(name)]
    return tuple(
        f"{kind}/{name}"
        for kind, name in sorted(unlike, key=lambda item: (_rank(item[0]), item[1]))
    )


def _rank(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _unlike(left: Mapping[str, Any], right: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs in plain dicts, as in `optimizer.args.lr: 0.1, not 0.2`."""
    found = []
    for name in sorted({*left, *right}):
        place = f"{path}.{name}" if path else name
        one, other = left.get(name), right.get(name)
        if place in _FREE or one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _unlike(one, other, place)
        else:
            found.append(f"{place}: {one}, not {other}")
    return found
