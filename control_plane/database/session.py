"""The database: connections, transactions, retries; SQLite by default, Postgres as well."""

from __future__ import annotations

import asyncio
import sqlite3
import time
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
#: Seconds from a call to its end that SQLite may be waited for while another process has it: less
#: than a caller waits. Calls that queued behind one get the least.
BUSY_SECONDS: Final = 7.0
LEAST_BUSY_SECONDS: Final = 0.05
#: A call that takes longer is one that the database holds up.
SLOW_SECONDS: Final = 1.0
#: To connect to Postgres.
CONNECT_SECONDS: Final = 5
#: Serialization failure, deadlock, admin shutdown, connection failures of Postgres.
_PASSING_STATES: Final = ("40001", "40P01", "57P01", "57P03", "08000", "08003", "08006")
#: Disk full, of Postgres.
_FULL_STATE: Final = "53100"
#: Somebody else holds a lock for too long, of Postgres.
_LOCKED_STATE: Final = "55P03"
#: What SQLite says when its disk has no room, or a file may not grow.
_FULL_CODES: Final = ("SQLITE_FULL", "SQLITE_IOERR_WRITE")


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
        #: When each call that is not over yet began, on the monotonic clock.
        self._running: dict[object, float] = {}
        self._last_trouble = float("-inf")

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

    def last_trouble(self) -> float:
        """When a call was last given up or held up, on the monotonic clock."""
        now = time.monotonic()
        held_up = any(now - began > SLOW_SECONDS for began in self._running.values())
        return now if held_up else self._last_trouble

    def close(self) -> None:
        """Waits for what is running, then lets the connections go."""
        self._readers.shutdown(cancel_futures=True)
        self._writers.shutdown(cancel_futures=True)
        self._engine.dispose()

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        transact: Callable[[Callable[[Connection], Result], bool, float], Result],
        function: Callable[[Connection], Result],
        writing: bool,
    ) -> Result:
        began = time.monotonic()
        self._running[call := object()] = began
        try:
            return await asyncio.get_running_loop().run_in_executor(
                threads, transact, function, writing, began + BUSY_SECONDS
            )
        except EverstepError as error:
            if error.reason is Reason.DATABASE_UNAVAILABLE:
                self._last_trouble = time.monotonic()
            raise
        finally:
            if time.monotonic() - began > SLOW_SECONDS:
                self._last_trouble = time.monotonic()
            del self._running[call]

    def _transact(
        self, function: Callable[[Connection], Result], writing: bool, deadline: float
    ) -> Result:
        try:
            result: Result = _retrying(deadline)(self._transact_once, function, writing, deadline)
            return result
        except DatabaseError as error:
            # Others, such as a broken constraint, are faults of the code.
            if type(error) not in (DatabaseError, OperationalError):
                raise
            advice = _advice(error)
            # Without a traceback: there may be many, and all it tells is in the driver's words.
            _log.error("database failed", error=str(error.orig), writing=writing)
            raise EverstepError(
                Reason.DATABASE_UNAVAILABLE,
                f"the control plane's database {advice}, then try again",
            ) from None

    def _transact_once(
        self, function: Callable[[Connection], Result], writing: bool, deadline: float
    ) -> Result:
        with (
            self._engine.connect().execution_options(
                everstep_writing=writing, everstep_deadline=deadline
            ) as connection,
            connection.begin(),
        ):
            return function(connection)


def _retrying(deadline: float) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_go_better),
        stop=tenacity.stop_after_attempt(TRIES)
        | tenacity.stop_after_delay(max(0.0, deadline - time.monotonic())),
        wait=tenacity.wait_random_exponential(multiplier=0.02, max=1),
        reraise=True,
    )


def _advice(error: DBAPIError) -> str:
    """What is wrong with the database, and what to do about it."""
    code = getattr(error.orig, "sqlite_errorname", "")
    state = getattr(error.orig, "sqlstate", "")
    if code.startswith(_FULL_CODES) or state == _FULL_STATE:
        return "has no room: its disk is full; make some"
    if _is_locked(error.orig) or state == _LOCKED_STATE:
        return (
            "is held by another process; look which one uses EVERSTEP_DATABASE_URL (a backup, a "
            "shell)"
        )
    return "does not answer; check EVERSTEP_DATABASE_URL, the disk and the service's log"


def _is_locked(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and (
        "locked" in str(error) or "busy" in str(error)
    )


def _may_go_better(error: BaseException) -> bool:
    # Two callers who insert the same key: the second try sees the first one's row.
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.OperationalError):
        return _is_locked(error.orig)
    return error.connection_invalidated or getattr(error.orig, "sqlstate", "") in _PASSING_STATES


def _create_engine(text: str) -> Engine:
    try:
        url = make_url(text)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
            url = url.update_query_dict({"connect_timeout": str(CONNECT_SECONDS), **url.query})
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
    else:
        event.listen(engine, "connect", _prepare_postgres)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late and never IMMEDIATE.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {BUSY_SECONDS * 1000:.0f}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    writing, deadline = options.get("everstep_writing", True), options.get("everstep_deadline", 0)
    left = max(LEAST_BUSY_SECONDS, deadline - time.monotonic())
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {left * 1000:.0f}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _prepare_postgres(connection: Any, _record: Any) -> None:
    connection.execute(f"SET lock_timeout = '{BUSY_SECONDS:g}s'")
    connection.commit()
