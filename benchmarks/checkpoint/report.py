"""From the results of all runs to tables, a plot and one line: medians and ratios."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.checkpoint.job import SIZES
from benchmarks.checkpoint.one_run import COPY, EVERSTEP
from benchmarks.checkpoint.peers import AsyncSave, Nothing, TorchSave
from benchmarks.checkpoint.plot import draw
from benchmarks.checkpoint.uploads import RAW
from benchmarks.figures import machine, median, table

Run = dict[str, Any]
_TITLES: Final = {"all": "all weights trained", "frozen": "nine tenths of the state frozen"}


class Results:
    """The runs of a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.runs: list[Run] = [json.loads(line) for line in path.read_text().splitlines()]

    def of(self, section: str, **wanted: str) -> dict[str, list[Run]]:
        """Runs of a section by contender, in the order they were first made."""
        found: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            if run["section"] == section and all(run.get(k) == v for k, v in wanted.items()):
                found[run["contender"]].append(run)
        return dict(found)

    def sizes(self) -> list[str]:
        """Those that were run, the smallest first."""
        there = {run["size"] for run in self.runs}
        return [name for name in SIZES if name in there]


class Steps:
    """The steps of one run, and which of them ran beside a save that was on its way.

    The loop trains for an interval, saves, trains for another one, and so on.
    """

    def __init__(self, run: Run) -> None:
        saves = len(run["saved_at"])
        length = len(run["steps"]) // (saves + 1)
        # What was never stored kept the machine busy nobody knows how long: to the end.
        durable = [*run["durable_at"], *[run["ended_at"]] * saves][:saves]
        #: Of the first interval, and of each other once its save was durable.
        self.quiet: list[float] = run["steps"][:length]
        self.beside: list[float] = []
        self.stalls: list[float] = run["stalls"]
        for number in range(saves):
            moment = run["saved_at"][number] + run["stalls"][number]
            for seconds in run["steps"][(number + 1) * length : (number + 2) * length]:
                (self.beside if moment < durable[number] else self.quiet).append(seconds)
                moment += seconds

    def lost(self) -> float:
        """Seconds of training for each save: its stall, and what steps beside it took longer."""
        usual = median(self.quiet)
        longer = sum(seconds - usual for seconds in self.beside)
        return (sum(self.stalls) + longer) / len(self.stalls)


class Training:
    """What a training lost to its checkpoints, by contender."""

    def __init__(self, runs: dict[str, list[Run]]) -> None:
        self.runs = {name: some for name, some in runs.items() if name != COPY}
        #: Seconds of one copy of the state in memory.
        self.copy = median(run["copy"] for run in runs.get(COPY, []))
        self._alone = {run["round"]: run for run in runs.get(Nothing.name, [])}

    def contenders(self) -> list[str]:
        return [name for name in self.runs if name != Nothing.name]

    def stall(self, name: str, first: bool) -> float:
        """Seconds that training waited: for the first save, or for a later one."""
        return median(stall for run in self.runs[name] for stall in _part(run["stalls"], first))

    def stall_to_copy(self, name: str, first: bool) -> float:
        """The same, in copies of the same bytes."""
        return self.stall(name, first) / self.copy

    def longest_stall(self, name: str) -> float:
        """Seconds, of all rounds."""
        return max(float(stall) for run in self.runs[name] for stall in run["stalls"])

    def lost(self, name: str) -> float:
        """Seconds of training for each checkpoint, against the same run's other steps."""
        return median(self.losses(name))

    def losses(self, name: str) -> list[float]:
        """The same, of each round."""
        return [Steps(run).lost() for run in self.runs[name]]

    def slowed(self, name: str) -> float:
        """The median step beside a save, in undisturbed ones; 1 where no step is beside one."""
        steps = [Steps(run) for run in self.runs[name]]
        return median(
            median(run.beside) / median(run.quiet) if run.beside else 1.0 for run in steps
        )

    def durable(self, name: str) -> float:
        """Seconds from the begin of a save until it was in the store."""
        return median(
            durable - saved
            for run in self.runs[name]
            if len(run["saved_at"]) == len(run["durable_at"])
            for saved, durable in zip(run["saved_at"], run["durable_at"], strict=True)
        )

    def processor(self, name: str) -> float:
        """Seconds of processor time for each GB that was saved."""
        return self._against_alone(
            name,
            lambda run, alone: (
                (run["cpu_seconds"] - alone["cpu_seconds"])
                / (run["state_bytes"] * len(run["stalls"]) / 1e9)
            ),
        )

    def memory(self, name: str) -> float:
        """The most memory on top of training alone, in states."""
        return self._against_alone(
            name,
            lambda run, alone: (
                (run["peak_tree_bytes"] - alone["peak_tree_bytes"]) / run["state_bytes"]
            ),
        )

    def second_bytes(self, name: str) -> float:
        """Bytes of the second save, in states."""
        return median(
            run["bytes"][1] / run["state_bytes"] for run in self.runs[name] if run["bytes"][1:]
        )

    def stored(self, name: str) -> float:
        """The share of a run's saves that became checkpoints."""
        return median(len(run["bytes"]) / len(run["stalls"]) for run in self.runs[name])

    def _against_alone(self, name: str, value: Callable[[Run, Run], float]) -> float:
        return median(
            value(run, self._alone[run["round"]])
            for run in self.runs[name]
            if run["round"] in self._alone
        )


def write_report(results: Path, target: Path) -> str:
    """Writes TARGET.md and TARGET.svg.

    Returns:
        One line of ratios, of the largest size that was run.
    """
    found = Results(results)
    parts = [f"{machine()}; server and training share the cores.\n"]
    for size in found.sizes():
        for job in ("all", "frozen"):
            training = Training(found.of("training", size=size, job=job))
            if training.contenders():
                parts.append(_training_table(f"{size}, {_TITLES[job]}", training))
        alone = Training(found.of("client", size=size))
        if alone.contenders():
            parts.append(_training_table(f"{size}, all weights, the server elsewhere", alone))
        parts += _seconds_tables(found, size)
    ratios = _ratios(found)
    parts.append(table(("figure", "measured"), ratios))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text("\n".join(parts))
    largest = found.sizes()[-1]
    training = Training(found.of("training", size=largest, job="all"))
    if training.contenders():
        draw(training, largest, target.with_suffix(".svg"))
    return ", ".join(f"{name} {value}" for name, value in ratios)


def _training_table(title: str, training: Training) -> str:
    some = training.runs[training.contenders()[0]]
    heading = (
        f"### {title}\n\nA state of {some[0]['state_bytes'] / 1e6:,.1f} MB, "
        f"{len(some[0]['stalls'])} saves a run, {len(some)} rounds; one memory copy of it took "
        f"{training.copy * 1e3:.1f} ms."
        "\n\n"
    )
    rows = [
        (
            f"**{name}**" if name == EVERSTEP else name,
            _milliseconds(training.stall(name, first=True)),
            _milliseconds(training.stall(name, first=False)),
            f"{training.stall_to_copy(name, first=False):.2f}",
            _milliseconds(training.longest_stall(name)),
            _with_range(training.losses(name)),
            f"{training.slowed(name):.2f}",
            f"{training.durable(name):.2f} s",
            f"{training.processor(name):.1f} s",
            f"{training.memory(name):.1f}",
            f"{training.second_bytes(name):.3f}",
            f"{training.stored(name):.0%}",
        )
        for name in training.contenders()
    ]
    columns = (
        "", "first stall", "later stalls", "/ memcpy", "longest", "lost per checkpoint",
        "steps meanwhile", "to durable", "CPU per GB", "memory / state",
        "bytes of the second / state", "stored",
    )  # fmt: skip
    return heading + table(columns, rows)


def _seconds_tables(found: Results, size: str) -> Iterable[str]:
    for section, title in (("upload", "Upload alone"), ("restore", "Restore")):
        runs = found.of(section, size=size)
        if not runs:
            continue
        rows = []
        for name, some in runs.items():
            peak = ""
            if section == "restore":
                peak = f"{median(run['peak_bytes'] / run['state_bytes'] for run in some):.2f}"
            rows.append((name, _with_range([run["seconds"] for run in some]), peak))
        yield f"### {size}: {title}\n\n" + table(("", "seconds", "memory / state"), rows)
    recoveries = found.of("recovery", size=size)
    for some in recoveries.values():
        yield f"### {size}: Recovery\n\n" + table(("", "seconds"), _recovery_rows(some))


def _recovery_rows(runs: Sequence[Run]) -> list[tuple[str, str]]:
    names = (
        ("process started, torch imported", "killed", "told"),
        ("model and optimizer built (the job's own work)", "told", "built"),
        ("restored from memory, digests compared", "built", "restored"),
        ("first step", "restored", "first_step"),
    )
    rows = []
    for label, begin, end in names:
        moments = [run["moments"] | {"killed": run["killed"]} for run in runs]
        rows.append((label, _with_range([each[end] - each[begin] for each in moments])))
    return rows


def _ratios(found: Results) -> list[tuple[str, str]]:
    size = found.sizes()[-1]
    ratios: list[tuple[str, str]] = []
    training = Training(found.of("training", size=size, job="all"))
    if EVERSTEP in training.runs:
        ratios += _training_ratios(training)
    alone = Training(found.of("client", size=size))
    peers = [name for name in alone.contenders() if name != EVERSTEP]
    if EVERSTEP in alone.runs and peers:
        ratio = alone.lost(EVERSTEP) / min(map(alone.lost, peers))
        ratios.append(("with the server elsewhere", f"{ratio:.2f}"))
    upload = _seconds(found, "upload", size)
    if EVERSTEP in upload:
        ratios.append(("upload/raw put_object", f"{upload[RAW] / upload[EVERSTEP]:.2f}"))
    frozen = Training(found.of("training", size=size, job="frozen"))
    peers = [name for name in frozen.contenders() if name != EVERSTEP]
    if EVERSTEP in frozen.runs and peers:
        least = min(map(frozen.second_bytes, peers))
        ratios.append(("frozen bytes/peers", f"{frozen.second_bytes(EVERSTEP) / least:.3f}"))
    restore = _seconds(found, "restore", size)
    if EVERSTEP in restore:
        own = restore[EVERSTEP]
        ratios += [
            ("restore/raw GET", f"{own / restore['raw parallel GET']:.2f}"),
            ("restore/torch.load", f"{own / restore['torch.load(BytesIO(get_object))']:.2f}"),
        ]
    return ratios


def _training_ratios(training: Training) -> list[tuple[str, str]]:
    first, later = (training.stall_to_copy(EVERSTEP, first) for first in (True, False))
    ratios = [("stall/memcpy", f"{later:.2f}"), ("first stall/memcpy", f"{first:.2f}")]
    if TorchSave.name in training.runs:
        ratio = training.stall(TorchSave.name, False) / training.stall(EVERSTEP, False)
        ratios.append(("torch.save + put_object/stall", f"{ratio:.0f}"))
    if AsyncSave.name in training.runs:
        for label, first_one in (("dcp.async_save/stall", False), ("its first/first", True)):
            ratio = training.stall(AsyncSave.name, first_one) / training.stall(EVERSTEP, first_one)
            ratios.append((label, f"{ratio:.1f}"))
    peers = [name for name in training.contenders() if name != EVERSTEP]
    if peers:
        best = min(map(training.lost, peers))
        ratios.append(("lost/best peer's", f"{training.lost(EVERSTEP) / best:.2f}"))
    return ratios


def _seconds(found: Results, section: str, size: str) -> dict[str, float]:
    return {
        name: median(run["seconds"] for run in runs)
        for name, runs in found.of(section, size=size).items()
    }


def _part(stalls: Sequence[float], first: bool) -> Sequence[float]:
    return stalls[:1] if first else stalls[1:]


def _with_range(seconds: Sequence[float]) -> str:
    middle = f"{median(seconds):.2f} s"
    return middle if len(seconds) < 2 else f"{middle} ({min(seconds):.2f}-{max(seconds):.2f})"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
