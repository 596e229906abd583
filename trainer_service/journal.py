"""The trainer's memory of what it said: every durable event, on disk before it is sent.

SQLite with synchronous=FULL: an event that anyone has seen survives a crash of the trainer and of
its machine. All methods block; `AttemptProgress` calls them in a thread. One that writes raises
sqlite3.OperationalError while the disk is full, and leaves the journal as it was.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    operation_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    start_time REAL NOT NULL,
    finished INTEGER NOT NULL DEFAULT 0,
    forgotten INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (operation_id, attempt)
);
CREATE TABLE IF NOT EXISTS events (
    operation_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    event_index INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (operation_id, attempt, event_index),
    FOREIGN KEY (operation_id, attempt) REFERENCES attempts ON DELETE CASCADE
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class JournalAttempt:
    """One attempt in the journal."""

    operation_id: str
    attempt: int
    #: Seconds since the epoch.
    start_time: float
    #: Whether its last event is Completed, Failed or Cancelled.
    finished: bool
    #: Whether its events are dropped; that it was here is kept, so that it is not run again.
    forgotten: bool
    last_index: int


class Journal:
    """Attempts and their durable events, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def check(self) -> None:
        """Sees that the disk has room, by writing as much as an attempt's beginning takes."""
        with self._lock:
            self._connection.execute(f"PRAGMA user_version = {time.time_ns() % 2**31}")

    def open_attempt(self, operation_id: str, attempt: int) -> None:
        """Begins an attempt; it must be new."""
        with self._lock:
            self._connection.execute(
                "INSERT INTO attempts (operation_id, attempt, start_time) VALUES (?, ?, ?)",
                (operation_id, attempt, time.time()),
            )

    def append(
        self, operation_id: str, attempt: int, index: int, payload: bytes, last: bool
    ) -> None:
        """Stores one event; `last` ends the attempt in the same transaction.

        The same event once more is fine: of a commit that failed, nobody knows whether it was one.
        """
        key = (operation_id, attempt)
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(
                "INSERT OR REPLACE INTO events (operation_id, attempt, event_index, payload) "
                "VALUES (?, ?, ?, ?)",
                (*key, index, payload),
            )
            if last:
                self._connection.execute(
                    "UPDATE attempts SET finished = 1 WHERE operation_id = ? AND attempt = ?", key
                )

    def read(
        self, operation_id: str, attempt: int, after_index: int, limit: int, size: int
    ) -> list[tuple[int, bytes]]:
        """The events after an index, as (index, payload), in order.

        Args:
            limit: Of events.
            size: Of all together, in bytes; one that is larger by itself comes alone.
        """
        found: list[tuple[int, bytes]] = []
        with self._lock:
            rows = self._connection.execute(
                "SELECT event_index, payload FROM events "
                "WHERE operation_id = ? AND attempt = ? AND event_index > ? "
                "ORDER BY event_index LIMIT ?",
                (operation_id, attempt, after_index, limit),
            )
            for index, payload in rows:
                size -= len(payload)
                if found and size < 0:
                    break
                found.append((index, payload))
        return found

    def attempts(self) -> list[JournalAttempt]:
        """All attempts, newest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT operation_id, attempt, start_time, finished, forgotten, "
                "(SELECT coalesce(max(event_index), 0) FROM events "
                " WHERE events.operation_id = attempts.operation_id "
                " AND events.attempt = attempts.attempt) "
                "FROM attempts ORDER BY start_time DESC, attempt DESC"
            ).fetchall()
        return [
            JournalAttempt(operation_id, attempt, start, bool(finished), bool(forgotten), last)
            for operation_id, attempt, start, finished, forgotten, last in rows
        ]

    def forget(self, operation_id: str, attempt: int) -> None:
        """Drops an attempt's events; one that is unknown is fine."""
        key = (operation_id, attempt)
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(
                "DELETE FROM events WHERE operation_id = ? AND attempt = ?", key
            )
            self._connection.execute(
                "UPDATE attempts SET forgotten = 1 WHERE operation_id = ? AND attempt = ?", key
            )

    def prune(self, older_than_seconds: float) -> None:
        """Removes finished attempts that began longer ago."""
        with self._lock:
            self._connection.execute(
                "DELETE FROM attempts WHERE finished = 1 AND start_time < ?",
                (time.time() - older_than_seconds,),
            )
