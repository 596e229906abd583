"""Each a mechanism of the services left out: the simulation has to notice.

A mutation replaces a few names in the real modules while schedules run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from sqlalchemy import Connection

import control_plane.assignment
import control_plane.creation
import control_plane.event_log
from checkpoint_store.blob_upload import BlobUpload, MemoryBlob
from control_plane import attempt_log
from control_plane.assignment import Beginning
from control_plane.attempt_follower import AttemptFollower
from control_plane.attempt_log import Stored
from control_plane.database import attempts, deletions, operations
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from control_plane.garbage_sweep import GarbageSweep
from control_plane.placement import TrainerPool
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides
from tests.simulation.cluster import LEASE_SECONDS
from tests.simulation.faults import (
    ControlPlaneReplaced,
    Deleted,
    GarbageCollected,
    LinkLossy,
    StoreSlow,
)
from tests.simulation.plan import Plan, Step, Training, draw_plan


@dataclass(frozen=True)
class Mutation:
    """One mechanism left out."""

    name: str
    #: Module or class, attribute, and what stands there instead.
    replaced: tuple[tuple[Any, str, Any], ...]
    #: Draws schedules in which that matters.
    plan: Callable[[int], Plan] = draw_plan

    @contextmanager
    def made(self) -> Iterator[None]:
        """While this runs the mechanism is left out."""
        with ExitStack() as stack:
            for owner, name, value in self.replaced:
                stack.enter_context(patch.object(owner, name, value))
            yield


def _store_words_unfenced(
    connection: Connection, operation_id: str, number: int, words: Sequence[TrainingProgress]
) -> Stored:
    operation = operations.lock(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None or attempt is None:
        return Stored(0, over=True)
    fresh = [word for word in words if word.index > attempt.cursor]
    if not fresh:
        return Stored(attempt.cursor, over=bool(attempt.ending))
    return attempt_log._store_fresh(connection, operation, attempt, fresh)


_store_fresh = attempt_log._store_fresh


def _store_fresh_counting(by: int) -> Callable[..., Stored]:
    def store(
        connection: Connection,
        operation: OperationRecord,
        attempt: AttemptRecord,
        words: Sequence[TrainingProgress],
    ) -> Stored:
        stored = _store_fresh(connection, operation, attempt, words)
        attempts.set_values(
            connection, attempt.operation_id, attempt.number, cursor=stored.cursor + by
        )
        return stored

    return store


def _nothing(*_: object, **__: object) -> None:
    """In the place of a check, or of something remembered."""


def _from_the_beginning(_connection: Connection, _operation: OperationRecord) -> Beginning:
    return Beginning(None, 1, StrategyOverrides())


async def _never_given_up(*_: object) -> bool:
    return False


_put = BlobUpload._put


def _put_but_for_frozen(self: BlobUpload, digest: str, blob: MemoryBlob) -> None:
    if blob[0] != "frozen":
        _put(self, digest, blob)


def _directed(seed: int, *steps: Step, control_planes: int = 2) -> Plan:
    trainings = tuple(Training(number, 3, 2, 2, 0.5 * number) for number in (1, 2))
    return Plan(seed, control_planes, 2, trainings, steps)


def _replaced_control_planes(seed: int) -> Plan:
    seconds = (2 + seed % 4) * LEASE_SECONDS
    return _directed(
        seed, Step(2.5, ControlPlaneReplaced(f"control-plane-{1 + seed % 2}", seconds))
    )


def _unanswered_creations(seed: int) -> Plan:
    lossy = [LinkLossy(f"control-plane-{number} to client", 3.0) for number in (1, 2)]
    return _directed(seed, *(Step(0.0, fault) for fault in lossy))


def _collections_beside_uploads(seed: int) -> Plan:
    collections = [Step(2 + number / 4, GarbageCollected("collector", 0)) for number in range(12)]
    return _directed(seed, Step(1.5, StoreSlow("store", 6.0)), *collections, control_planes=1)


def _deleted_during_an_upload(seed: int) -> Plan:
    deleted = Step(2.5 + seed / 50, Deleted("operation 0", 0.0))
    return _directed(seed, Step(1.5, StoreSlow("store", 6.0)), deleted)


MUTATIONS: Final = (
    Mutation(
        "words of an attempt that is over are taken",
        ((control_plane.event_log, "store_words", _store_words_unfenced),),
        _replaced_control_planes,
    ),
    Mutation(
        "a missing index is not noticed, and the cursor runs ahead",
        (
            (attempt_log, "_check_words", _nothing),
            (attempt_log, "_store_fresh", _store_fresh_counting(1)),
        ),
    ),
    Mutation(
        "the cursor lags behind",
        ((attempt_log, "_store_fresh", _store_fresh_counting(-1)),),
    ),
    Mutation(
        "an attempt begins without its checkpoint",
        ((control_plane.assignment, "_beginning", _from_the_beginning),),
    ),
    Mutation(
        "a full trainer is given more",
        ((TrainerPool, "has_room", lambda _self, _trainer: True),),
    ),
    Mutation(
        "a request is not remembered",
        ((control_plane.creation, "remember_answer", _nothing),),
        _unanswered_creations,
    ),
    Mutation(
        "a collection takes what is young",
        ((GarbageSweep, "_is_old", lambda *_: True),),
        _collections_beside_uploads,
    ),
    Mutation(
        "deletions are not remembered",
        ((deletions, "contains", lambda *_: False),),
        _deleted_during_an_upload,
    ),
    Mutation(
        "an attempt is never given up",
        ((AttemptFollower, "_after_error", _never_given_up),),
    ),
    Mutation(
        "a blob is left out",
        ((BlobUpload, "_put", _put_but_for_frozen),),
    ),
)
