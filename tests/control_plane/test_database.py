"""The database's own promises: migrations, the table of transitions, fenced attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text, update

from control_plane import times
from control_plane.assignment import Assigned, assign_round
from control_plane.attempt_log import store_end, store_words
from control_plane.database import (
    attempts,
    events,
    operations,
    queue,
    schema,
    session,
    trainers,
)
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from control_plane.placement import demand_digest
from control_plane.states import TRANSITIONS, Change, State
from control_plane.transitions import change_state, note_event
from everstep.control.v1.operations_pb2 import CreateOperationRequest, OperationEvent
from everstep.errors import EverstepError, Reason
from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.control_plane.conftest import strategy
from tests.control_plane.earlier_version import insert_row, migrate_to


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.migrate()
    yield database
    database.close()


async def create(database: Database) -> str:
    service = Operations(database, EventLog(database), lambda: None)
    return (await service.create(CreateOperationRequest(strategy=strategy()))).operation_id


async def register(database: Database, trainer_id: str, capacity: int) -> None:
    await database.write(
        trainers.register,
        trainer_id,
        "127.0.0.1:1",
        capacity,
        b"",
        times.after(60),
        False,
        "{}",
        times.now(),
    )


async def running(database: Database) -> str:
    """An operation with an open attempt on a registered trainer."""
    operation_id = await create(database)
    await register(database, "trainer-1", capacity=8)
    decided = await database.write(assign_round, "test", 60.0, frozenset())
    assert decided.begun == [Assigned(operation_id, 1)]
    return operation_id


def word(operation_id: str, index: int, attempt: int = 1, **event: Any) -> TrainingProgress:
    event = event or {"warning": {"reason": "TEST", "message": str(index)}}
    return TrainingProgress(operation_id=operation_id, attempt=attempt, index=index, **event)


async def log(database: Database, operation_id: str) -> list[OperationEvent]:
    payloads = await database.read(events.page, operation_id, 0, 10_000, 1 << 20)
    return [OperationEvent.FromString(payload) for payload in payloads]


async def test_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    def differences(connection: Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, schema.metadata)

    assert await database.read(differences) == []
    await database.migrate()


async def test_a_queue_of_an_earlier_version_keeps_its_order_and_its_demands(
    tmp_path: Path,
) -> None:
    """What was queued before there were priorities and labels: by age, by environment alone."""
    database = Database(f"sqlite:///{tmp_path / 'earlier.db'}")

    def fill(connection: Connection) -> None:
        migrate_to(connection, "0002")
        queued = {"state": "PENDING", "metrics": "{}"}
        insert_row(connection, "operations", operation_id="op-1", create_time=17, **queued)
        insert_row(
            connection, "operations", operation_id="op-2", create_time=18, attempt=1, **queued
        )
        insert_row(connection, "attempts", operation_id="op-2", number=1, environment=b"cpu")

    await database.write(fill)
    await database.migrate()
    for operation_id, create_time, environment in (("op-1", 17, None), ("op-2", 18, b"cpu")):
        operation = await database.read(operations.find, operation_id)
        assert operation is not None
        assert (operation.queue_time, operation.priority) == (create_time, 0)
        assert operation.demand == demand_digest("{}", environment)
    found = await database.read(queue.demands, State.PENDING, times.now())
    assert [(each.trainer_labels, each.environment) for each in found] == [
        ("{}", None),
        ("{}", b"cpu"),
    ]
    database.close()


async def test_a_database_of_a_newer_version_is_refused_untouched(database: Database) -> None:
    await database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num='9'")))
    with pytest.raises(EverstepError, match="newer version") as caught:
        await database.migrate()
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "nonsense", "sqlite:////proc/no/db"])
def test_a_bad_database_url_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(EverstepError) as caught:
        Database(url)
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE
    assert "EVERSTEP_DATABASE_URL" in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database at all, but a text of some length" * 99)
    database = Database(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(EverstepError) as caught:
        await database.migrate()
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE
    database.close()


async def test_every_change_is_refused_outside_its_states(database: Database) -> None:
    operation_id = await create(database)

    def attempt_change(connection: Connection, state: State, change: Change) -> tuple[bool, str]:
        connection.execute(
            update(schema.operations)
            .where(schema.operations.c.operation_id == operation_id)
            .values(state=state.value)
        )
        before = operations.lock(connection, operation_id)
        assert before is not None
        changed = change_state(connection, before, change, "a test")
        after = operations.find(connection, operation_id)
        assert after is not None
        assert (after.last_sequence > before.last_sequence) == changed
        return changed, after.state

    for state in State:
        for change, transition in TRANSITIONS.items():
            changed, after = await database.write(attempt_change, state, change)
            assert changed == (state in transition.sources), (state, change)
            assert after == (transition.target if changed else state)


def test_the_table_holds_the_changes_of_the_contract_and_no_others() -> None:
    changes = {
        (source.value, transition.target.value)
        for transition in TRANSITIONS.values()
        for source in transition.sources
    }
    assert changes == {
        ("PENDING", "RUNNING"),
        ("RUNNING", "COMPLETED"),
        ("RUNNING", "FAILED"),
        ("RUNNING", "CANCELLED"),
        ("RUNNING", "CANCELLING"),
        ("CANCELLING", "CANCELLED"),
        # It ended by itself before it heard the wish to stop.
        ("CANCELLING", "COMPLETED"),
        ("CANCELLING", "FAILED"),
        ("PENDING", "CANCELLED"),
        ("FAILED", "PENDING"),
        ("CANCELLED", "PENDING"),
        ("COMPLETED", "PENDING"),
        ("RUNNING", "PENDING"),
    }


async def test_a_change_that_names_an_old_attempt_is_refused(database: Database) -> None:
    operation_id = await running(database)

    def late(connection: Connection) -> bool:
        operation = operations.find(connection, operation_id)
        assert operation is not None
        operations.set_values(connection, operation_id, attempt=2)
        return change_state(connection, operation, Change.COMPLETED, "a test")

    assert await database.write(late) is False
    operation = await database.read(operations.find, operation_id)
    assert operation is not None
    assert operation.state == State.RUNNING


async def test_many_writers_at_once_get_sequences_without_a_gap(database: Database) -> None:
    operation_id = await create(database)
    other = Database(database._engine.url.render_as_string(hide_password=False))
    await asyncio.gather(
        *(
            each.write(events.append, operation_id, [note_event("TEST", f"{i}-{j}", 0)] * 1)
            for i, each in enumerate((database, other))
            for j in range(60)
        )
    )
    other.close()
    entries = await log(database, operation_id)
    assert [entry.sequence for entry in entries] == list(range(1, 122))
    assert len({entry.note.message for entry in entries[1:]}) == 120


async def test_events_that_come_twice_are_stored_once(database: Database) -> None:
    operation_id = await running(database)
    words = [word(operation_id, index) for index in range(1, 21)]
    await asyncio.gather(
        *(
            database.write(store_words, operation_id, 1, words[:end])
            for end in (5, 20, 12, 20, 1, 7)
        )
    )
    indexes = [e.progress.index for e in await log(database, operation_id) if e.progress.index]
    assert indexes == list(range(1, 21))


async def test_a_left_out_index_stores_nothing(database: Database) -> None:
    operation_id = await running(database)
    before = await log(database, operation_id)
    with pytest.raises(EverstepError, match="left out event 2"):
        await database.write(
            store_words, operation_id, 1, [word(operation_id, 1), word(operation_id, 3)]
        )
    with pytest.raises(EverstepError, match="sent an event of operation op-other"):
        await database.write(store_words, operation_id, 1, [word("op-other", 1)])
    assert await log(database, operation_id) == before


async def test_words_of_an_attempt_that_is_over_are_refused_with_one_note(
    database: Database,
) -> None:
    operation_id = await running(database)
    await database.write(store_words, operation_id, 1, [word(operation_id, 1)])
    lost = EverstepError(Reason.SERVICE_UNAVAILABLE, "not heard any more")
    assert await database.write(store_end, operation_id, 1, lost)
    assert not await database.write(store_end, operation_id, 1, lost)
    for index in (2, 3, 4):
        stored = await database.write(
            store_words, operation_id, 1, [word(operation_id, index, completed={"result": {}})]
        )
        assert stored.over
    entries = await log(database, operation_id)
    assert [e.note.reason for e in entries if e.HasField("note")] == ["LATE_EVENTS"]
    assert [e.progress.index for e in entries if e.HasField("progress")] == [1]
    operation = await database.read(operations.find, operation_id)
    assert operation is not None
    assert operation.state == State.PENDING


async def test_two_control_planes_assign_each_operation_once(database: Database) -> None:
    ids = [await create(database) for _ in range(12)]
    for number in range(3):
        await register(database, f"trainer-{number}", capacity=2)
    other = Database(database._engine.url.render_as_string(hide_password=False))
    assigned = await asyncio.gather(
        *(
            each.write(assign_round, name, 60.0, frozenset[str]())
            for _ in range(10)
            for each, name in ((database, "one"), (other, "two"))
        )
    )
    other.close()
    given = [each.operation_id for decided in assigned for each in decided.begun]
    # On Postgres a round may find a queue that another one holds; nothing is given twice.
    assert len(given) == len(set(given)) <= 6
    load = await database.read(attempts.open_by_trainer)
    assert all(len(running) <= 2 for running in load.values())
    while (await database.write(assign_round, "one", 60.0, frozenset[str]())).begun:
        pass
    load = await database.read(attempts.open_by_trainer)
    assert {trainer_id: len(each) for trainer_id, each in load.items()} == {
        "trainer-0": 2,
        "trainer-1": 2,
        "trainer-2": 2,
    }
    assert {each.operation_id for running in load.values() for each in running} <= set(ids)


async def test_another_control_plane_takes_over_when_the_lease_of_the_first_has_ended(
    database: Database,
) -> None:
    operation_id = await running(database)
    states = [State.RUNNING.value]
    now = times.now()
    found = operations.owned_or_abandoned
    assert await database.read(found, states, "test", now) == [operation_id]
    assert await database.read(found, states, "other", now) == []
    later = times.after(61)
    assert await database.read(found, states, "other", later) == [operation_id]
    take = operations.take_over
    assert not await database.write(take, operation_id, states, "other", now, later)
    assert await database.write(take, operation_id, states, "other", later, later)


async def test_calls_that_another_process_holds_up_fail_in_time_and_go_well_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "BUSY_SECONDS", 1.0)
    operation_id = await running(database)
    held_up = Database(database._engine.url.render_as_string(hide_password=False))
    note = events.append, operation_id, [note_event("TEST", "waits", 1)]
    with database._engine.connect() as connection:
        # On SQLite the transaction itself has the write lock.
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE operations, events IN EXCLUSIVE MODE"))
        else:
            connection.execute(text("SELECT 1"))
        began = time.monotonic()
        answers = await asyncio.gather(
            *(held_up.write(*note) for _ in range(12)), return_exceptions=True
        )
        assert time.monotonic() - began < 6
        assert held_up.last_trouble() > began
        connection.rollback()
    for answer in answers:
        assert isinstance(answer, EverstepError)
        assert answer.reason is Reason.DATABASE_UNAVAILABLE
        assert "held by another process" in answer.message
    await held_up.write(*note)
    held_up.close()
    assert [event.note.message for event in await log(database, operation_id)].count("waits") == 1
