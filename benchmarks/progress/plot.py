"""The benchmark's picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.progress.report import Results

_COLOURS: Final = ("#2a9d8f", "#9aa5b1", "#cbd2d9")


def draw(found: Results, path: Path) -> None:
    """Deliveries a second by watchers, and how long an event is on its way."""
    matplotlib.rcParams["svg.hashsalt"] = "everstep"
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    deliveries, delays = figure.subplots(1, 2, width_ratios=(3, 2))
    _group(
        deliveries,
        [f"to {watchers:,}" for watchers in found.sizes("delivery")],
        {
            name: [found.median("delivery", name, size, "rate") for size in found.sizes("delivery")]
            for name in found.contenders("delivery")
        },
        "{:,.0f}",
    )
    deliveries.set_title("events delivered a second; more is better", fontsize=10)
    size = found.sizes("latency")[0]
    _group(
        delays,
        ["median", "p99"],
        {
            name: [found.median("latency", name, size, of) * 1e3 for of in ("p50", "p99")]
            for name in found.contenders("latency")
        },
        "{:.1f}",
    )
    delays.set_title(f"ms from a step to {size:,} screens; less is better", fontsize=10)
    handles, names = deliveries.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _group(axes: Axes, labels: list[str], bars: dict[str, list[float]], shown: str) -> None:
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        places = [place + number * width for place in range(len(labels))]
        drawn = axes.bar(places, values, width, label=name, color=_COLOURS[number])
        axes.bar_label(drawn, [shown.format(value) for value in values], fontsize=7, padding=2)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(labels))], labels)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    axes.margins(y=0.15)
