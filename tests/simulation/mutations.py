"""Each a mechanism of the services left out: the simulation has to notice.

A mutation replaces a few names in the real modules while schedules run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from sqlalchemy import Connection

import control_plane.assignment
import control_plane.attempt_log
import control_plane.dispatcher
import control_plane.event_log
import control_plane.operations
from control_plane import attempt_log
from control_plane.assignment import Beginning, Trainers
from control_plane.attempt_log import Stored
from control_plane.database import attempts, operations
from control_plane.database.attempts import AttemptRecord
from control_plane.database.operations import OperationRecord
from everstep.training.v1.progress_pb2 import TrainingProgress
from everstep.training.v1.strategy_pb2 import StrategyOverrides


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


_store_end = control_plane.attempt_log.end_by_error


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
)
del replace
