"""Real data sets that come in wheels: no download, no account."""

from __future__ import annotations

import csv
import gzip
import importlib.resources
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everstep.errors import EverstepError, FieldViolation, Reason
from trainer_service.strategies.arguments import choose, refused


@dataclass(frozen=True)
class Table:
    """A data set before it is split."""

    #: float32, (n, ...).
    inputs: NDArray[np.float32]
    #: (n).
    targets: NDArray[np.float64]
    #: The target's name.
    target: str
    #: Whether each feature is brought to mean 0 and deviation 1.
    scale_inputs: bool = True
    scale_targets: bool = True
    #: Whether examples follow each other in time.
    in_time: bool = False
    #: Examples left out between two parts, so that none shares a day with the other part.
    gap: int = 0


def digits() -> Table:
    """1,797 handwritten digits of 8x8 pixels (scikit-learn); inputs (1, 8, 8)."""
    data = _from_sklearn("load_digits")
    return Table(
        inputs=(data.images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8),
        targets=data.target.astype(np.float64),
        target="label",
        scale_inputs=False,
    )


def diabetes() -> Table:
    """442 patients, ten measurements, the progression after a year (scikit-learn)."""
    data = _from_sklearn("load_diabetes")
    return Table(data.data.astype(np.float32), data.target.astype(np.float64), "progression")


def breast_cancer() -> Table:
    """569 samples, thirty measurements, malignant (0) or benign (1) (scikit-learn)."""
    data = _from_sklearn("load_breast_cancer")
    return Table(data.data.astype(np.float32), data.target.astype(np.float64), "label")


_PRICES: Final = ("Open", "High", "Low", "Close")


def stocks(symbol: str = "AAPL", window: int = 30, horizon: int = 1) -> Table:
    """Daily prices and volumes (bokeh-sampledata): windows of returns, and the return that follows.

    Args:
        symbol: Of the stock.
        window: Days in an example; inputs are (window, 5): log changes of open, high, low, close
            and volume.
        horizon: Days ahead; the target is the log return of the close over them.
    """
    for name, value in (("window", window), ("horizon", horizon)):
        if not isinstance(value, int) or value < 1:
            raise refused(f"data.args.{name}", f"expected a whole number from 1 on, got {value}")
    rows = _stock_rows(symbol)
    prices = np.log(np.array([_adjusted_prices(row) for row in rows]))
    volume = np.log1p(np.array([float(row["Volume"]) for row in rows]))
    changes = np.diff(np.column_stack([prices, volume]), axis=0)
    count = len(changes) - window - horizon + 1
    if count < 1:
        raise refused(
            "data.args.window", f"{window} + {horizon} days are more than the {len(rows)} there are"
        )
    close = prices[:, 3]
    days = np.arange(count) + window
    return Table(
        inputs=np.stack([changes[start : start + window] for start in range(count)]).astype(
            np.float32
        ),
        targets=close[days + horizon] - close[days],
        target="return",
        in_time=True,
        gap=window + horizon,
    )


def _adjusted_prices(row: dict[str, str]) -> list[float]:
    """Prices without the jumps of splits and dividends."""
    factor = float(row["Adj Close"]) / float(row["Close"])
    return [float(row[name]) * factor for name in _PRICES]


def _stock_rows(symbol: str) -> list[dict[str, str]]:
    try:
        packed = importlib.resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
        text = gzip.decompress(packed.read_bytes()).decode()
    except (ModuleNotFoundError, FileNotFoundError):
        raise _not_installed("bokeh-sampledata") from None
    by_symbol: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(text.splitlines()):
        by_symbol.setdefault(row["Ticker"], []).append(row)
    rows = by_symbol[choose("data.args.symbol", symbol, by_symbol)]
    return sorted(rows, key=lambda row: row["Date"])


def _from_sklearn(loader: str) -> Any:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise _not_installed("scikit-learn") from None
    return getattr(datasets, loader)()


def _not_installed(package: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_STRATEGY,
        f"this data set comes with {package}, which the trainer does not have; there, run "
        "pip install 'everstep[datasets]'",
        violations=[FieldViolation("data.source", f"needs the package {package}")],
    )
