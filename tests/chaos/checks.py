"""The promises, held against what is there when all faults are over."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Final

from checkpoint_store import open_blob_store
from checkpoint_store.blobs import BlobStore
from checkpoint_store.checkpoints import read_manifest
from checkpoint_store.digests import blob_digest, blob_key
from checkpoint_store.manifest import Manifest
from checkpoint_store.store_clock import store_time
from everstep.sdk import (
    CheckpointCommitted,
    Client,
    EpochCompleted,
    Event,
    Operation,
    OperationState,
    StateChanged,
    StepMetrics,
    TrainingEvent,
    TrainingRestarted,
)
from tests.chaos.cluster import ACCESS_KEY, SECRET_KEY
from tests.chaos.watching import Watcher
from tests.services.processes import wait_for


@dataclass(frozen=True)
class Outcome:
    """One operation, as it is at the end."""

    operation: Operation
    #: The log, replayed from its beginning when all was over.
    replay: list[Event]
    watcher: Watcher
    #: What the same strategy ends with when nothing happens.
    wanted: Mapping[str, str]
    left_cancelled: bool


@dataclass(frozen=True)
class Ending:
    """What is there at the end of a trial."""

    outcomes: list[Outcome]
    #: Speaks to the control plane directly.
    client: Client
    store: BlobStore
    #: Attempts that trainers still run, as in `attempt 2 of op-1 on trainer-1`.
    still_running: list[str]
    client_faults: list[str]


Check = Callable[[Ending], Iterator[str]]


def open_store(url: str) -> BlobStore:
    """The cluster's store, to look into."""
    return open_blob_store(url, ACCESS_KEY, SECRET_KEY)


def exact(ending: Ending) -> Iterator[str]:
    """Each completed training has the bytes of one that nothing happened to."""
    for outcome in ending.outcomes:
        result = outcome.operation.result
        if result is not None and dict(result.digests) != dict(outcome.wanted):
            parts = [
                part
                for part in {**outcome.wanted, **result.digests}
                if result.digests.get(part) != outcome.wanted.get(part)
            ]
            yield f"{outcome.operation.id} differs in {', '.join(sorted(parts))}"


def no_event_lost(ending: Ending) -> Iterator[str]:
    """The log has no gap, and who watched all the time saw just that, once and in order."""
    for outcome in ending.outcomes:
        name, replay, seen = outcome.operation.id, outcome.replay, outcome.watcher.seen
        sequences = [event.sequence for event in replay]
        if sequences != list(range(1, outcome.operation.last_sequence + 1)):
            yield f"{name}: the log is not 1 to {outcome.operation.last_sequence}: {sequences}"
        if len(seen) != len(replay):
            yield f"{name}: a watcher saw {len(seen)} events of {len(replay)}"
        for watched, logged in zip(seen, replay, strict=False):
            if content(watched) != content(logged):
                yield f"{name}: a watcher saw {content(watched)}, the log has {content(logged)}"
        for error in outcome.watcher.errors:
            yield f"{name}: a watch was given up: {error.reason} {error.message}"
        fractions = [event.position.fraction for event in replay if event.position is not None]
        if any(later < earlier for earlier, later in pairwise(fractions)):
            yield f"{name}: its fraction went back"


def content(event: Event) -> str:
    """All that an event says: mappings have no order, and NaN equals NaN."""
    return json.dumps([type(event).__name__, asdict(event)], sort_keys=True, default=str)


def no_half_checkpoint(ending: Ending) -> Iterator[str]:
    """Every listed checkpoint is whole, read again byte for byte."""
    registered = {checkpoint.id for checkpoint in ending.client.checkpoints()}
    for verified in ending.client.verify_all():
        registered.discard(verified.checkpoint_id)
        if verified.damaged:
            yield f"{verified.checkpoint_id}: {verified.message}"
    for checkpoint_id in registered:
        yield f"{checkpoint_id} is listed and was not verified"
    for outcome in ending.outcomes:
        if outcome.operation.resumable and outcome.operation.latest_checkpoint is None:
            yield f"{outcome.operation.id} says it is resumable, and has no checkpoint"


def one_runner(ending: Ending) -> Iterator[str]:
    """Attempts follow one another: none says a word after its end, none begins before it."""
    for outcome in ending.outcomes:
        name = outcome.operation.id
        for earlier, later in pairwise(outcome.operation.attempts):
            if earlier.ended is None or later.started < earlier.ended:
                yield f"{name}: attempt {later.number} began before {earlier.number} had ended"
        yield from _attempts_in_log(name, outcome.replay)
        result = outcome.operation.result
        steps = [
            event.position.step
            for event in outcome.replay
            if isinstance(event, CheckpointCommitted) and event.checkpoint.step
        ]
        if result is not None and steps and max(steps) > result.steps:
            yield f"{name}: a checkpoint is beyond the last step"


def _attempts_in_log(name: str, replay: list[Event]) -> Iterator[str]:
    open_attempt, step = 0, 0
    for event in replay:
        if isinstance(event, StateChanged):
            if event.reason == "DISPATCHED":
                open_attempt, step = event.attempt, 0
            elif event.to not in (OperationState.RUNNING, OperationState.CANCELLING):
                open_attempt = 0
        elif isinstance(event, TrainingRestarted):
            step = event.from_step
        elif isinstance(event, StepMetrics | EpochCompleted):
            if event.position.step < step:
                yield f"{name}: its step went back at {event.sequence}, without a restart"
            step = event.position.step
        if isinstance(event, TrainingEvent) and event.attempt != open_attempt:
            # The last word of an attempt stands before the change of state that it brings.
            yield f"{name}: attempt {event.attempt} speaks at {event.sequence}, being over"


def nothing_stuck(ending: Ending) -> Iterator[str]:
    """Every operation is in a final state, the right one, and no trainer works for nobody."""
    for outcome in ending.outcomes:
        operation = outcome.operation
        wanted = OperationState.CANCELLED if outcome.left_cancelled else OperationState.COMPLETED
        if operation.state is not wanted:
            why = operation.failure.message if operation.failure else operation.waiting_for
            yield f"{operation.id} is {operation.state}, not {wanted}: {why}"
        for attempt in operation.attempts:
            if operation.state.is_final and not attempt.end:
                yield f"{operation.id}: attempt {attempt.number} has no end"
    for running in ending.still_running:
        yield f"{running} still runs"
    yield from ending.client_faults


def nothing_lost_to_collection(ending: Ending) -> Iterator[str]:
    """After a collection there is every blob that a checkpoint names, and no other one."""
    # It spares what is no older than its grace, and the store's clock tells seconds.
    newest = max((info.modified for info in ending.store.list("blobs/")), default=None)
    wait_for(lambda: newest is None or store_time(ending.store) > newest, "the next second")
    ending.client.collect_garbage(grace=timedelta(0))
    named: set[str] = set()
    listed = {info.key for info in ending.store.list("operations/")}
    for manifest in _manifests(ending.store, listed):
        named |= {blob_key(entry.digest) for entry in manifest.blobs}
    blobs = {info.key for info in ending.store.list("blobs/")}
    for key in sorted(named - blobs):
        yield f"{key} is named and gone"
    for key in sorted(blobs - named):
        yield f"{key} is named by nothing and was left"
    for upload in ending.store.unfinished_uploads():
        yield f"the upload of {upload.key} was left unfinished"
    for verified in ending.client.verify_all():
        if verified.damaged:
            yield f"after the collection, {verified.checkpoint_id}: {verified.message}"


def nothing_unpickled(ending: Ending) -> Iterator[str]:
    """Every blob is a safetensors file under its own name."""
    for info in ending.store.list("blobs/"):
        content = ending.store.get(info.key)
        if blob_key(blob_digest(content)) != info.key:
            yield f"{info.key} is not what its name says"
        try:
            (length,) = struct.unpack_from("<Q", content)
            json.loads(content[8 : 8 + length])
        except (struct.error, ValueError):
            yield f"{info.key} is no safetensors file"


def _manifests(store: BlobStore, keys: set[str]) -> Iterator[Manifest]:
    for key in sorted(keys):
        yield read_manifest(store, key)


#: In the order of the README; collection comes after all that looks at what was there before.
PROMISES: Final[dict[str, Check]] = {
    "exact": exact,
    "no event lost": no_event_lost,
    "no half checkpoint": no_half_checkpoint,
    "one runner": one_runner,
    "nothing stuck": nothing_stuck,
    "nothing lost to clean-up": nothing_lost_to_collection,
    "nothing unpickled": nothing_unpickled,
}
