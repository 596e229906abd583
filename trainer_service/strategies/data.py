"""Data sets: loaded, checked, split, and named by a digest of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch.utils.data import Dataset

from everstep.errors import EverstepError
from everstep.training.v1.strategy_pb2 import DataSource, DataSplit
from trainer_service.child.batches import is_stream
from trainer_service.strategies.arguments import (
    call_with,
    choose,
    import_own,
    is_own,
    plain_arguments,
    refused,
)
from trainer_service.strategies.builtin_data import Table, breast_cancer, diabetes, digits, stocks
from trainer_service.strategies.losses import Task
from trainer_service.strategies.table_data import read_table

BUILTIN_PREFIX: Final = "builtin:"
_BUILTIN: Final[dict[str, Callable[..., Table]]] = {
    "digits": digits,
    "diabetes": diabetes,
    "breast_cancer": breast_cancer,
    "stocks": stocks,
}

Indices = NDArray[np.int64]
Example = tuple[torch.Tensor, torch.Tensor]


class Examples(Dataset[Example]):
    """Inputs (n, ...) and targets: int64 (n) for classes, float (n, outputs) for regression."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs = inputs
        self.targets = targets
        #: How likely each example is drawn; None: each once in an epoch.
        self.sample_weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Example:
        return self.inputs[index], self.targets[index]

    def batch(self, indices: Sequence[int]) -> Example:
        """Several examples, stacked."""
        chosen = torch.tensor(indices)
        return self.inputs[chosen], self.targets[chosen]


@dataclass(frozen=True)
class LoadedData:
    """A data set in its three parts: what a team's own factory returns.

    `validation` and `test` are read by index; so is `train`, unless it is a stream: then it has a
    length (its examples in an epoch) and either `state_dict` and `load_state_dict`, or
    `seek(position)` within the epoch, called before it is iterated; `set_epoch(epoch)` is called
    where it is there. Examples are (input, target). A `train` that offers
    `example(index, generator)` draws its random numbers from that generator; `sample_weights`,
    a float tensor (n), is what `data.sampling: weighted` goes by.
    """

    train: Any
    validation: Any
    test: Any
    #: Names the content: a resume with another digest is refused. Of built-in data BLAKE3 over
    #: every input, target and part.
    digest: str
    #: Of one example, without the batch.
    input_shape: tuple[int, ...]
    #: Classes, or values to predict.
    output_size: int


def load_data(
    source: DataSource,
    data_root: Path,
    seed: int,
    task: Task,
    batch_size: int,
    allowed_packages: tuple[str, ...] = (),
) -> LoadedData:
    """Loads what a strategy names.

    The split is random by the seed, and by class where there are classes; a data set in time is
    split in time, with a gap. Scales are fitted on the training part alone.

    Raises:
        EverstepError: INVALID_STRATEGY, naming the field that the data does not fit.
    """
    if is_own(source.source):
        data = own_data(source, allowed_packages)
        if len(data.train) < batch_size:
            raise _too_large(batch_size, len(data.train))
        return data
    table = _read(source, data_root)
    targets, output_size = _targets(table, task)
    parts = _split(source.split, table, targets, seed, task)
    if len(parts[0]) < batch_size:
        raise _too_large(batch_size, len(parts[0]))
    inputs = _scaled(table.inputs, parts[0]) if table.scale_inputs else table.inputs
    if task == "regression" and table.scale_targets:
        targets = _scaled(targets, parts[0])
    train, validation, test = (
        Examples(
            torch.from_numpy(np.ascontiguousarray(inputs[part], dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(targets[part])),
        )
        for part in parts
    )
    if source.sampling != "shuffle":
        train.sample_weights = _sample_weights(source.sampling, targets[parts[0]], task)
    return LoadedData(
        train,
        validation,
        test,
        digest=_digest(table, targets, parts),
        input_shape=tuple(table.inputs.shape[1:]),
        output_size=output_size,
    )


def own_data(source: DataSource, allowed_packages: tuple[str, ...]) -> LoadedData:
    """What a team's own factory makes of the declared arguments.

    Raises:
        EverstepError: INVALID_STRATEGY for what cannot be resumed exactly.
    """
    factory = import_own("data.source", source.source, allowed_packages)
    data = call_with("data.args", factory, (), plain_arguments(source.args))
    if not isinstance(data, LoadedData):
        raise refused("data.source", f"{source.source} made no LoadedData")
    fault = _stream_fault(data.train, source.workers) if is_stream(data.train) else ""
    if is_stream(data.validation) or is_stream(data.test):
        fault = "validation and test data must be read by index; only train may be a stream"
    if not data.digest:
        fault = "its LoadedData has no digest; give it one that names the content"
    if source.sampling == "balanced":
        fault = "balanced goes by the classes of built-in data; say weighted, with sample_weights"
    if source.sampling == "weighted" and getattr(data.train, "sample_weights", None) is None:
        fault = "its train has no sample_weights to be drawn by"
    if fault:
        raise refused("data.source", fault)
    return data


def _stream_fault(stream: Any, workers: int) -> str:
    """Why a stream of examples cannot be resumed exactly; empty when it can."""
    if not hasattr(stream, "__len__"):
        return "a stream needs a length: its examples in an epoch"
    keeps = hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")
    if not keeps and not hasattr(stream, "seek"):
        return (
            "a stream cannot be resumed exactly without state_dict and load_state_dict, or "
            "seek(position); give it one of these"
        )
    return "a stream is read in the training process: data.workers must be 0" if workers else ""


def _too_large(batch_size: int, examples: int) -> EverstepError:
    return refused(
        "training.batch_size",
        f"a batch of {batch_size} is larger than the {examples} training examples",
    )


def _sample_weights(sampling: str, targets: NDArray[np.generic], task: Task) -> torch.Tensor:
    if sampling == "weighted":
        raise refused("data.sampling", "weighted is for a team's own data with sample_weights")
    if task != "classification":
        raise refused("data.sampling", "balanced is for classes; leave it out for a regression")
    classes = targets.astype(np.int64)
    return torch.from_numpy(1.0 / np.bincount(classes)[classes])


def _read(source: DataSource, data_root: Path) -> Table:
    arguments = plain_arguments(source.args)
    if not source.source.startswith(BUILTIN_PREFIX):
        if arguments:
            raise refused("data.args", "a data file takes no arguments")
        return read_table(source.source, source.target, list(source.features), data_root)
    name = source.source.removeprefix(BUILTIN_PREFIX)
    factory = _BUILTIN[choose("data.source", name, _BUILTIN)]
    if source.features:
        raise refused("data.features", f"{source.source} has its own features; leave this out")
    table = call_with("data.args", factory, (), arguments)
    if source.target and source.target != table.target:
        raise refused("data.target", f"{source.source} has the target {table.target}")
    return table


def _targets(table: Table, task: Task) -> tuple[NDArray[np.generic], int]:
    """Targets as a loss takes them, and how many outputs they need."""
    values = table.targets
    if task == "regression":
        return values.astype(np.float32).reshape(len(values), -1), 1
    if not np.array_equal(values, np.round(values)):
        raise refused("data.target", "cross_entropy takes whole numbers 0, 1, 2, ... as classes")
    classes = values.astype(np.int64).reshape(-1)
    if len(classes) and classes.min() < 0:
        raise refused("data.target", f"a class is {classes.min()}; classes count from 0")
    count = int(classes.max()) + 1 if len(classes) else 0
    missing = sorted(set(range(count)) - set(classes.tolist()))[:5] if count < 100_000 else [0]
    if count < 2 or missing:
        described = f"class {missing[0]} has no example" if missing else "there is only one class"
        raise refused("data.target", f"{described}; classes are 0 to the highest, none empty")
    return classes, count


def _split(
    split: DataSplit, table: Table, targets: NDArray[np.generic], seed: int, task: Task
) -> tuple[Indices, Indices, Indices]:
    count = len(table.targets)
    if table.in_time:
        train, validation, test = _split_in_time(split, count, table.gap)
    else:
        digest = hashlib.blake2b(f"everstep-split-1:{seed}".encode(), digest_size=8).digest()
        random = np.random.default_rng(int.from_bytes(digest, "big"))
        groups = (
            [np.flatnonzero(targets == value) for value in np.unique(targets)]
            if task == "classification"
            else [np.arange(count)]
        )
        shuffled = [_cut(random.permutation(group), split) for group in groups]
        train, validation, test = (
            np.sort(np.concatenate([parts[index] for parts in shuffled])) for index in range(3)
        )
    if task == "classification":
        absent = set(np.unique(targets).tolist()) - set(np.unique(targets[train]).tolist())
        if absent:
            raise refused(
                "data.target", f"class {min(absent)} has too few examples to be trained on"
            )
    for name, part, fraction in (
        ("train", train, split.train),
        ("validation", validation, split.validation),
        ("test", test, split.test),
    ):
        if fraction > 0 and not len(part):
            raise refused("data.split", f"no example falls to {name}: {count} are too few")
    return train, validation, test


def _cut(order: Indices, split: DataSplit) -> tuple[Indices, Indices, Indices]:
    """The first to validation and test, rounded down; the rest is trained on."""
    validation = int(len(order) * split.validation)
    test = int(len(order) * split.test)
    return order[validation + test :], order[:validation], order[validation : validation + test]


def _split_in_time(split: DataSplit, count: int, gap: int) -> tuple[Indices, Indices, Indices]:
    """Train, then validation, then test; what lies in the gaps between them is left out."""
    order = np.arange(count, dtype=np.int64)
    first = int(count * split.train)
    second = int(count * (split.train + split.validation))
    return order[:first], order[first + gap : second], order[second + gap :]


def _scaled(values: NDArray[np.generic], train: Indices) -> NDArray[np.float32]:
    """Mean 0 and deviation 1 by the training part, over all but the last axis."""
    exact = values.astype(np.float64)
    axes = tuple(range(exact.ndim - 1))
    mean, deviation = exact[train].mean(axis=axes), exact[train].std(axis=axes)
    scaled: NDArray[np.float32] = ((exact - mean) / np.where(deviation > 0, deviation, 1)).astype(
        np.float32
    )
    return scaled


def _digest(
    table: Table, targets: NDArray[np.generic], parts: tuple[Indices, Indices, Indices]
) -> str:
    hasher = blake3()
    for array in (table.inputs, targets, *parts):
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        hasher.update(f"{little.dtype.str}{little.shape}".encode())
        hasher.update(little.tobytes())
    return hasher.hexdigest()
