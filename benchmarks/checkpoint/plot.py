"""The benchmark's picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib
from matplotlib.figure import Figure

from benchmarks.checkpoint.one_run import EVERSTEP

if TYPE_CHECKING:
    from benchmarks.checkpoint.report import Training

_OWN: Final = "#2a9d8f"
_OTHER: Final = "#9aa5b1"


def draw(training: Training, size: str, path: Path) -> None:
    """How long training waits for a save, and how much of it a checkpoint costs in all."""
    matplotlib.rcParams["svg.hashsalt"] = "everstep"
    names = sorted(training.contenders(), key=lambda name: -training.stall(name, first=False))
    figure = Figure(figsize=(10, 0.45 * len(names) + 1.2), layout="constrained")
    stalls, lost = figure.subplots(1, 2, sharey=True)
    panels = (
        (stalls, "training waits for a save", lambda name: training.stall(name, first=False)),
        (lost, "training time lost for each checkpoint", training.lost),
    )
    for axes, title, value in panels:
        values = [value(name) for name in names]
        colours = [_OWN if name == EVERSTEP else _OTHER for name in names]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, [f"{seconds:.2f} s" for seconds in values], padding=3)
        axes.set_title(f"{title}, {size}", fontsize=10)
        axes.set_xlim(right=max(values) * 1.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("seconds; less is better")
    figure.savefig(path, metadata={"Date": None})
