"""Each a mechanism of the services left out: the simulation has to notice.

A mutation replaces a few names in the real modules while schedules run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from sqlalchemy import Connection, update

import control_plane.assignment
import control_plane.checkpoints
import control_plane.event_log
import control_plane.operations
from checkpoint_store.blob_upload import BlobUpload
from control_plane import attempt_ends, attempt_log
from control_plane.assignment import Beginning, Trainers
from control_plane.attempt_log import Stored
from control_plane.database import attempts, operations, schema
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from control_plane.garbage_sweep import GarbageSweep
from everstep.errors import EverstepError
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides
from trainer_service.journal import Journal
from trainer_service.trainings import Trainings


@dataclass(frozen=True)
class Mutation:
    """One mechanism left out."""

    name: str
    #: Module or class, attribute, and what stands there instead.
    replaced: tuple[tuple[Any, str, Any], ...]

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


def _change_whatever_the_state(
    connection: Connection,
    operation_id: str,
    _sources: Iterable[str],
    target: str,
    _attempt: int,
    values: Mapping[str, Any],
) -> bool:
    changed = connection.execute(
        update(schema.operations)
        .where(schema.operations.c.operation_id == operation_id)
        .values(state=target, **values)
    )
    return changed.rowcount == 1


def _store_end_twice(
    connection: Connection, operation_id: str, number: int, error: EverstepError
) -> bool:
    operation = operations.lock(connection, operation_id)
    attempt = attempts.find(connection, operation_id, number)
    if operation is None or attempt is None:
        return False
    attempt_ends.end_by_error(connection, operation, attempt, error)
    return True


def _take_over_always(
    connection: Connection,
    operation_id: str,
    states: Sequence[str],
    owner: str,
    _now: int,
    lease_time: int,
) -> bool:
    return _take_over(connection, operation_id, states, owner, lease_time + 1, lease_time)


_take_over = operations.take_over


def _owned_by_anyone(
    connection: Connection, states: Sequence[str], owner: str, _now: int
) -> list[str]:
    return _owned(connection, states, owner, 2**62)


_owned = operations.owned_or_abandoned


MUTATIONS: Final = (
    Mutation(
        "words of an attempt that is over are taken",
        ((control_plane.event_log, "store_words", _store_words_unfenced),),
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
        ((Trainers, "has_room", lambda _self, _trainer: True),),
    ),
    Mutation(
        "a request is not remembered",
        ((control_plane.operations, "_remember", _nothing),),
    ),
    Mutation(
        "retention keeps nothing for who needs it",
        ((control_plane.checkpoints, "_protected", lambda *_: frozenset()),),
    ),
    Mutation(
        "a collection takes what is young",
        ((GarbageSweep, "_is_old", lambda *_: True),),
    ),
    Mutation(
        "a state is changed whatever it was",
        ((operations, "change_state", _change_whatever_the_state),),
    ),
    Mutation(
        "an attempt ends twice",
        ((control_plane.event_log, "store_end", _store_end_twice),),
    ),
    Mutation(
        "leases of control planes do not count",
        (
            (operations, "take_over", _take_over_always),
            (operations, "owned_or_abandoned", _owned_by_anyone),
        ),
    ),
    Mutation(
        "a trainer begins what is over",
        ((Trainings, "_refuse_stale", _nothing),),
    ),
    Mutation(
        "a checkpoint is named before its blobs are there",
        ((BlobUpload, "_put", _nothing),),
    ),
    Mutation(
        "a trainer forgets before it is told",
        ((Journal, "attempts", lambda _self: []),),
    ),
)
