"""The database in memory: the real tables, functions and SQLite, without threads."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from control_plane.database.migrate import migrate
from control_plane.database.session import Database
from everstep.errors import EverstepError, Reason

Result = TypeVar("Result")


class Disk:
    """What control planes share, and what outlives them.

    Args:
        draw: Says which transactions fail while it fails.
    """

    #: By URL.
    mounted: Final[dict[str, Disk]] = {}

    def __init__(self, url: str, draw: random.Random) -> None:
        self.failing = False
        self.draw = draw
        self._url = url
        self._memory = memory = _empty()
        self._engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
        self.connection = self._engine.connect()
        self.mounted[url] = self

    def transact(self, function: Callable[[Connection], Result]) -> Result:
        """One transaction; SQLAlchemy's own would take as long again."""
        self._memory.execute("BEGIN")
        try:
            result = function(self.connection)
        except BaseException:
            self._memory.execute("ROLLBACK")
            raise
        self._memory.execute("COMMIT")
        return result

    def heads(self) -> dict[str, tuple[str, int]]:
        """State and last sequence of each operation, seen without a control plane."""
        rows = self._memory.execute("SELECT operation_id, state, last_sequence FROM operations")
        return {operation_id: (state, last) for operation_id, state, last in rows}

    def has_orphans(self) -> bool:
        """Whether a trainer may keep an attempt of an operation that was deleted."""
        return bool(self._memory.execute("SELECT 1 FROM orphaned_attempts LIMIT 1").fetchall())

    def attempt_indexes(self) -> dict[str, list[int]]:
        """The indexes of each attempt's events in the log's order, as in `2 of op-1`."""
        found: dict[str, list[int]] = {}
        for operation_id, attempt, index in self._memory.execute(
            "SELECT operation_id, attempt, attempt_index FROM events "
            "WHERE attempt IS NOT NULL ORDER BY operation_id, sequence"
        ):
            found.setdefault(f"{attempt} of {operation_id}", []).append(index)
        return found

    def close(self) -> None:
        """Nothing is left of it."""
        del self.mounted[self._url]
        self.connection.close()
        self._engine.dispose()


class SimulatedDatabase(Database):
    """As Database; each transaction runs at one moment, between two callbacks of the loop."""

    def __init__(self, url: str) -> None:
        # Of this it uses how calls are given to threads, and never the file.
        super().__init__("sqlite:////dev/null")
        self._disk = Disk.mounted[url]

    async def migrate(self) -> None:
        """The tables are there."""

    def close(self) -> None:
        """The disk stays."""

    def _transact(
        self, function: Callable[[Connection], Result], writing: bool, _deadline: float
    ) -> Result:
        disk = self._disk
        # A commit whose answer is lost, as that of a database on another machine may be.
        unanswered = writing and disk.failing and disk.draw.random() < 0.5
        if disk.failing and not unanswered:
            raise _unavailable()
        result = disk.transact(function)
        if unanswered:
            raise _unavailable()
        return result


def _unavailable() -> EverstepError:
    return EverstepError(Reason.DATABASE_UNAVAILABLE, "the database does not answer; try again")


@cache
def _tables() -> sqlite3.Connection:
    """An empty database, migrated once for all schedules of this process."""
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
    with engine.begin() as connection:
        migrate(connection)
    return memory


def _empty() -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    _tables().backup(memory)
    memory.execute("PRAGMA foreign_keys = ON")
    return memory
