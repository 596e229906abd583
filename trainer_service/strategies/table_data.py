"""Data files of a team: CSV, NPZ and Parquet under the trainer's data root."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer_service.strategies.arguments import refused
from trainer_service.strategies.builtin_data import Table

Columns = dict[str, NDArray[np.float64]]


def read_table(source: str, target: str, features: list[str], data_root: Path) -> Table:
    """A file's columns as inputs (n, features) and targets (n); every cell a finite number.

    Args:
        source: Relative to the data root, which it may not leave.
        target: The column that is learned.
        features: The columns it is learned from; empty: all others, in their order.
        data_root: Holds the data files.

    Raises:
        EverstepError: INVALID_STRATEGY for data.source, data.target or data.features.
    """
    path = _path_within(source, data_root)
    readers = {".csv": _read_csv, ".npz": _read_npz, ".parquet": _read_parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise refused("data.source", f"{source} is no .csv, .npz or .parquet file")
    columns = reader(path)
    if not target:
        raise refused("data.target", f"name the column to learn; there are {', '.join(columns)}")
    if target not in columns:
        raise refused(
            "data.target", f"{source} has no column {target}; there are {', '.join(columns)}"
        )
    for name in features:
        if name not in columns:
            raise refused(
                "data.features", f"{source} has no column {name}; there are {', '.join(columns)}"
            )
    chosen = features or [name for name in columns if name != target]
    if not chosen or target in chosen:
        raise refused("data.features", f"needs a column besides the target {target}")
    inputs = np.column_stack([columns[name] for name in chosen]).astype(np.float32)
    return Table(inputs, columns[target], target)


def _path_within(source: str, data_root: Path) -> Path:
    root = data_root.resolve()
    path = (root / source).resolve()
    if Path(source).is_absolute() or not path.is_relative_to(root):
        raise refused("data.source", f"{source} is not under the trainer's data root")
    if not path.is_file():
        raise refused("data.source", f"there is no file {source} under the data root {root}")
    return path


def _read_csv(path: Path) -> Columns:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise refused("data.source", f"{path.name} is no CSV file: {error}") from None
    if len(rows) < 2:
        raise refused("data.source", f"{path.name} has no rows")
    names = [name.strip() for name in rows[0]]
    _check_names(path, names)
    values = np.empty((len(rows) - 1, len(names)))
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise refused(
                "data.source", f"{path.name}, line {number}: {len(row)} cells, not {len(names)}"
            )
        for index, cell in enumerate(row):
            values[number - 2, index] = _number(path, names[index], number, cell)
    return {name: values[:, index] for index, name in enumerate(names)}


def _number(path: Path, column: str, line: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise refused(
            "data.source",
            f"{path.name}, line {line}, column {column}: {cell[:40]!r} is no finite number",
        )
    return value


def _read_npz(path: Path) -> Columns:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise refused("data.source", f"{path.name} is no NPZ file of numbers: {error}") from None
    return _numeric(path, columns)


def _read_parquet(path: Path) -> Columns:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise refused(
            "data.source", "Parquet needs the package pyarrow on the trainer: pip install pyarrow"
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise refused("data.source", f"{path.name} is no Parquet file: {error}") from None
    return _numeric(path, {name: table[name].to_numpy() for name in table.column_names})


def _numeric(path: Path, columns: dict[str, NDArray[np.generic]]) -> Columns:
    """Columns of one length that hold finite numbers; an array (n, k) becomes k columns."""
    numeric: Columns = {}
    for name, values in columns.items():
        if values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
            raise refused("data.source", f"{path.name}, {name}: no numbers in one or two axes")
        exact = values.astype(np.float64)
        if not np.isfinite(exact).all():
            raise refused("data.source", f"{path.name}, {name}: holds NaN or infinity")
        if exact.ndim == 1:
            numeric[name] = exact
        else:
            numeric |= {f"{name}_{index}": exact[:, index] for index in range(exact.shape[1])}
    if len({len(values) for values in numeric.values()}) != 1:
        raise refused("data.source", f"{path.name}: its arrays have different lengths, or none")
    _check_names(path, list(numeric))
    return numeric


def _check_names(path: Path, names: list[str]) -> None:
    if len(set(names)) != len(names) or not all(names):
        raise refused("data.source", f"{path.name}: column names must be there and be unique")
