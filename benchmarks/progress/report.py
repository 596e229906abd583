"""From the results of all runs to tables, a plot and one line."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import machine, median, table
from benchmarks.progress.plot import draw

EVERSTEP: Final = "Everstep"
BARE: Final = "bare stream, an event a message"
BATCHED: Final = "bare stream, Everstep's batches"
DISK: Final = "on disk"
MEMORY: Final = "in memory alone (/dev/shm)"

Run = dict[str, Any]


class Results:
    """The runs of a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.runs: list[Run] = [json.loads(line) for line in path.read_text().splitlines()]

    def values(self, section: str, contender: str, size: int, figure: str) -> list[float]:
        """One figure of every round."""
        wanted = (section, contender, size)
        return [
            run[figure]
            for run in self.runs
            if (run["section"], run["contender"], run["size"]) == wanted
        ]

    def median(self, section: str, contender: str, size: int, figure: str) -> float:
        return median(self.values(section, contender, size, figure))

    def ratio(self, watchers: int, peer: str) -> float:
        """Everstep's deliveries to the peer's, each round on its own."""
        own = self.values("delivery", EVERSTEP, watchers, "rate")
        others = self.values("delivery", peer, watchers, "rate")
        return median(mine / other for mine, other in zip(own, others, strict=False))

    def sizes(self, section: str) -> list[int]:
        return sorted({run["size"] for run in self.runs if run["section"] == section})

    def contenders(self, section: str) -> list[str]:
        """In the order they were first run."""
        found: dict[str, None] = defaultdict(lambda: None)
        for run in self.runs:
            if run["section"] == section:
                found[run["contender"]] = None
        return list(found)


def write_report(results: Path, target: Path) -> str:
    """Writes TARGET.md and TARGET.svg.

    Returns:
        One line of figures.
    """
    found = Results(results)
    rounds = 1 + max(run["round"] for run in found.runs)
    loads = [run["load"] for run in found.runs]
    parts = [
        f"{machine()}. {rounds} rounds; medians, and from the least to the most. The load of the "
        f"machine before each run: {median(loads):.1f} ({min(loads):.1f} to {max(loads):.1f}), "
        "which counts the run before it.\n"
    ]
    for section, write in _SECTIONS.items():
        if found.sizes(section):
            parts.append(write(found))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text("\n".join(parts))
    if found.sizes("delivery") and found.sizes("latency"):
        draw(found, target.with_suffix(".svg"))
    return ", ".join(_figures(found))


def _figures(found: Results) -> list[str]:
    figures = []
    if sizes := found.sizes("delivery"):
        figures.append(f"delivery/bare {min(found.ratio(size, BARE) for size in sizes):.2f}")
    if found.sizes("replay"):
        rate = found.median("replay", EVERSTEP, 1, "rate")
        figures.append(f"replay {rate:,.0f} events/s")
    for size in found.sizes("latency"):
        figures.append(f"p99 {found.median('latency', EVERSTEP, size, 'p99') * 1e3:.0f} ms")
    for size in found.sizes("idle"):
        figures.append(f"idle {found.median('idle', EVERSTEP, size, 'bytes') / 1e6:.0f} MB")
    return figures


def _delivery(found: Results) -> str:
    rows = []
    for watchers in found.sizes("delivery"):
        peers = [name for name in found.contenders("delivery") if name != EVERSTEP]
        row = [f"{watchers:,}", _rates(found, "delivery", EVERSTEP, watchers)]
        for peer in (BARE, BATCHED):
            if peer in peers:
                row.append(_rates(found, "delivery", peer, watchers))
                row.append(f"{found.ratio(watchers, peer):.2f}")
        in_message = found.median("delivery", EVERSTEP, watchers, "events_in_message")
        rows.append([*row, f"{in_message:.1f}"])
    columns = (
        "watchers", EVERSTEP, BARE, "Everstep / bare", BATCHED, "Everstep / these",
        "events in a message",
    )  # fmt: skip
    return "#### Deliveries a second, of all watchers\n\n" + table(columns, rows)


def _latency(found: Results) -> str:
    def shown(name: str, size: int) -> list[str]:
        return [
            _spread(found.values("latency", name, size, figure), lambda value: f"{value * 1e3:.1f}")
            for figure in ("p50", "p99", "longest")
        ]

    rows = [
        [f"{name}, {size:,} watchers", *shown(name, size)]
        for size in found.sizes("latency")
        for name in found.contenders("latency")
    ]
    heading = "#### Milliseconds from a step to the screens\n\n"
    return heading + table(("", "median", "p99", "longest"), rows)


def _replay(found: Results) -> str:
    rows = [
        [
            name,
            _rates(found, "replay", name, 1),
            f"{found.median('replay', name, 1, 'events_in_message'):.0f}",
        ]
        for name in found.contenders("replay")
    ]
    return "#### Replay\n\n" + table(("", "events a second", "events in a message"), rows)


def _append(found: Results) -> str:
    names = found.contenders("append")
    rows = [
        [f"{size:,}", *(_rates(found, "append", name, size) for name in names)]
        for size in found.sizes("append")
    ]
    return "#### Events appended a second\n\n" + table(("events in a transaction", *names), rows)


def _idle(found: Results) -> str:
    rows = [
        [
            name,
            _spread(
                found.values("idle", name, size, "bytes"), lambda value: f"{value / 1e6:.1f} MB"
            ),
            f"{found.median('idle', name, size, 'bytes') / size / 1e3:.1f} kB",
            _spread(found.values("idle", name, size, "processor_share"), "{:.1%}".format),
        ]
        for size in found.sizes("idle")
        for name in found.contenders("idle")
    ]
    heading = f"#### {found.sizes('idle')[0]:,} who wait\n\n"
    return heading + table(("", "memory", "each", "of one core"), rows)


_SECTIONS: Final[dict[str, Callable[[Results], str]]] = {
    "delivery": _delivery,
    "latency": _latency,
    "replay": _replay,
    "append": _append,
    "idle": _idle,
}


def _rates(found: Results, section: str, contender: str, size: int) -> str:
    return _spread(found.values(section, contender, size, "rate"), "{:,.0f}".format)


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """The median, and the least and the most where there are several."""
    if not values:
        return ""
    text = shown(median(values))
    if len(values) > 1:
        text += f" ({shown(min(values))} to {shown(max(values))})"
    return text
