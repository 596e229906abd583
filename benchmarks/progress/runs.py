"""One run of each kind: processes started, watched and ended; what came out as numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.progress.bare_server import OPERATION_ID
from benchmarks.progress.filled_log import FilledLog, strategy
from benchmarks.progress.processes import Part, control_plane
from benchmarks.progress.words import BEGIN_INDEX
from everstep import Client
from everstep.sdk.events import PhaseChanged

PACKAGE: Final = "benchmarks.progress"
#: Watchers beyond so many are shared among two processes.
_ONE_PROCESS: Final = 50
#: Of silence before memory is looked at, and while idle watchers' processor time is counted:
#: longer than a silent watch goes without a word.
_SETTLING_SECONDS: Final = 3.0
_IDLE_SECONDS: Final = 20.0
#: A sequence that no log comes to.
_NEVER: Final = 2**60

Found = dict[str, Any]


class Source:
    """Something that watchers watch: Everstep, or the bare stream."""

    def __init__(self, part: Part, address: str, operation_id: str, ready: int) -> None:
        #: The process that watchers speak to.
        self.part = part
        self.address = address
        self.operation_id = operation_id
        #: The last sequence before the clock is started.
        self.ready = ready
        #: Told to begin.
        self.speaker = part


@contextmanager
def everstep(folder: Path, events: int, rate: float) -> Iterator[Source]:
    """A control plane, a scripted trainer, and a training that has begun."""
    with ExitStack() as parts:
        service, address = control_plane(folder, folder / "control-plane.db")
        parts.enter_context(service)
        asked = {"control_plane": address, "events": events, "rate": rate}
        trainer = Part(f"{PACKAGE}.scripted_trainer", asked, folder / "trainer.log")
        parts.enter_context(trainer)
        with Client(address) as client:
            operation = client.train(strategy())
            ready = next(e.sequence for e in operation.events() if isinstance(e, PhaseChanged))
        source = Source(service, address, operation.id, ready)
        source.speaker = trainer
        yield source


@contextmanager
def bare(folder: Path, events: int, rate: float, batch: int) -> Iterator[Source]:
    """The bare stream with the same events."""
    asked = {"events": events, "rate": rate, "batch": batch}
    with Part(f"{PACKAGE}.bare_server", asked, folder / "bare.log") as server:
        address = server.line().removeprefix("listening on ")
        yield Source(server, address, OPERATION_ID, BEGIN_INDEX)


def deliver(source: Source, folder: Path, watchers: int, events: int) -> Found:
    """From one training to many, as fast as it goes: `rate` is of all deliveries, a second."""
    began, seen = _watched(source, folder, watchers, events, timed=False)
    seconds = max(each["ended"] for each in seen) - began
    delivered = sum(each["events"] for each in seen)
    return {
        "rate": delivered / seconds,
        "events_in_message": delivered / sum(each["messages"] for each in seen),
    }


def follow(source: Source, folder: Path, watchers: int, events: int) -> Found:
    """At a training's own pace: seconds from a word to each screen."""
    _, seen = _watched(source, folder, watchers, events, timed=True)
    delays = sorted(delay for each in seen for delay in each["delays"])
    percentiles = statistics.quantiles(delays, n=100)
    return {"p50": percentiles[49], "p99": percentiles[98], "longest": delays[-1]}


def replay(folder: Path, database: Path, log: FilledLog) -> Found:
    """A long log from its beginning to one watcher of a control plane that has just started."""
    service, address = control_plane(folder, database)
    with service:
        source = Source(service, address, log.operation_id, 0)
        return _replayed(source, folder, log.last_sequence)


def replay_bare(folder: Path, events: int, batch: int) -> Found:
    """The same messages from the bare stream."""
    with bare(folder, events, 0, batch) as source:
        source.part.tell("begin")
        source.part.word()
        source.ready = 0
        return _replayed(source, folder, events)


def append(folder: Path, events: int, batch: int) -> Found:
    """Events stored in a second, in a folder."""
    asked = {"folder": str(folder), "events": events, "batch": batch}
    with Part(f"{PACKAGE}.appends", asked, folder / "appends.log") as part:
        return {"rate": events / part.word()["seconds"]}


def idle(source: Source, folder: Path, watchers: int) -> Found:
    """Memory of the server for so many who wait, and its processor time for each second of it."""
    # One watcher first, so that what the first of all costs is not counted.
    with ExitStack() as some:
        _enter(some, _parts(source, folder, 1, source.ready, _NEVER, timed=False))
        time.sleep(_SETTLING_SECONDS)
        before = source.part.memory_bytes()
        _enter(some, _parts(source, folder, watchers, source.ready, _NEVER, timed=False))
        time.sleep(_SETTLING_SECONDS)
        used = source.part.processor_seconds()
        time.sleep(_IDLE_SECONDS)
        used = source.part.processor_seconds() - used
        return {
            "bytes": source.part.memory_bytes() - before,
            "processor_share": used / _IDLE_SECONDS,
        }


def _replayed(source: Source, folder: Path, events: int) -> Found:
    with _parts(source, folder, 1, 0, events, timed=False)[0] as part:
        part.word()
        seen = part.word()
    return {
        "rate": seen["events"] / (seen["ended"] - seen["began"]),
        "events_in_message": seen["events"] / seen["messages"],
    }


def _watched(
    source: Source, folder: Path, watchers: int, events: int, *, timed: bool
) -> tuple[float, list[Found]]:
    """When the training went on, and what each process of watchers saw of it."""
    last = source.ready + events
    with ExitStack() as stack:
        parts = _parts(source, folder, watchers, source.ready, last, timed=timed)
        _enter(stack, parts)
        source.speaker.tell("begin")
        began: float = source.speaker.word()["began"]
        return began, [part.word() for part in parts]


def _enter(stack: ExitStack, parts: Sequence[Part]) -> None:
    """Until all watchers are there."""
    for part in parts:
        stack.enter_context(part)
    for part in parts:
        part.word()


def _parts(
    source: Source, folder: Path, watchers: int, ready: int, last: int, *, timed: bool
) -> list[Part]:
    shares = [watchers] if watchers <= _ONE_PROCESS else [watchers // 2, watchers - watchers // 2]
    return [
        Part(
            f"{PACKAGE}.watchers",
            {
                "address": source.address,
                "operation_id": source.operation_id,
                "watchers": share,
                "after": 0,
                "ready": ready,
                "last": last,
                "timed": timed,
            },
            folder / "watchers.log",
        )
        for share in shares
    ]
