"""The database: connections, transactions, retries; SQLite by default, Postgres as well."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import structlog
import tenacity
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    IntegrityError,
    OperationalError,
)

from control_plane.database.migrate import migrate
from everstep.errors import EverstepError, Reason

_log = structlog.get_logger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Tries of a transaction that the database turned down for no fault of its own.
TRIES: Final = 6
#: Milliseconds SQLite waits for another process's transaction.
BUSY_TIMEOUT_MILLISECONDS: Final = 10_000
#: Serialization failure, deadlock, admin shutdown, connection failures of Postgres.
_PASSING_STATES: Final = ("40001", "40P01", "57P01", "57P03", "08000", "08003", "08006")


class Database:
    """Runs functions of a Connection, each in one transaction, in threads.

    `write` begins with the write lock on SQLite, so that what a function reads stays true until
    it commits; on Postgres the functions lock the rows they read (`SELECT ... FOR UPDATE`).

    Args:
        url: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`.

    Raises:
        EverstepError: DATABASE_UNAVAILABLE when the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._engine = _create_engine(url)
        self._embedded = self._engine.dialect.name == "sqlite"
        self._readers = ThreadPoolExecutor(4, "database-read")
        # SQLite takes one writer at a time: a single thread queues without polling its lock.
        self._writers = ThreadPoolExecutor(1 if self._embedded else 4, "database-write")

    async def migrate(self) -> None:
        """Brings the tables to this version.

        Raises:
            EverstepError: DATABASE_UNAVAILABLE.
        """
        await self._run(self._writers, self._transact, migrate, True)

    async def read(
        self,
        function: Callable[Concatenate[Connection, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """What `function(connection, ...)` returns, in one transaction that writes nothing."""
        return await self._run(
            self._readers, self._transact, lambda c: function(c, *args, **kwargs), False
        )

    async def write(
        self,
        function: Callable[Concatenate[Connection, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """What `function(connection, ...)` returns; when this returns, it is on disk.

        The function may run more than once: only its last run is committed.
        """
        return await self._run(
            self._writers, self._transact, lambda c: function(c, *args, **kwargs), True
        )

    def close(self) -> None:
        """Waits for what is running, then lets the connections go."""
        self._readers.shutdown(cancel_futures=True)
        self._writers.shutdown(cancel_futures=True)
        self._engine.dispose()

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        transact: Callable[[Callable[[Connection], Result], bool], Result],
        function: Callable[[Connection], Result],
        writing: bool,
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            threads, transact, function, writing
        )

    def _transact(self, function: Callable[[Connection], Result], writing: bool) -> Result:
        try:
            result: Result = _retrying()(self._transact_once, function, writing)
            return result
        except DatabaseError as error:
            # Others, such as a broken constraint, are faults of the code.
            if type(error) not in (DatabaseError, OperationalError):
                raise
            _log.error("database failed", exc_info=error)
            raise EverstepError(
                Reason.DATABASE_UNAVAILABLE,
                "the control plane's database does not answer; check EVERSTEP_DATABASE_URL, the "
                "disk and the service's log, then try again",
            ) from None

    def _transact_once(self, function: Callable[[Connection], Result], writing: bool) -> Result:
        with (
            self._engine.connect().execution_options(everstep_writing=writing) as connection,
            connection.begin(),
        ):
            return function(connection)


def _retrying() -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_go_better),
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.02, max=1),
        reraise=True,
    )


def _may_go_better(error: BaseException) -> bool:
    # Two callers who insert the same key: the second try sees the first one's row.
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.OperationalError):
        return "locked" in str(error.orig) or "busy" in str(error.orig)
    return error.connection_invalidated or getattr(error.orig, "sqlstate", "") in _PASSING_STATES


def _create_engine(text: str) -> Engine:
    try:
        url = make_url(text)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() == "sqlite":
            if not url.database or url.database == ":memory:":
                raise ArgumentError("SQLite needs a file here")
            Path(url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, pool_pre_ping=True)
    except (ArgumentError, ImportError, OSError) as error:
        raise EverstepError(
            Reason.DATABASE_UNAVAILABLE,
            f"EVERSTEP_DATABASE_URL cannot be used ({' '.join(str(error).split())}); set it to "
            "sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME",
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late and never IMMEDIATE.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MILLISECONDS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("everstep_writing", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
