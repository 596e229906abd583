"""Compaction: what is not kept is refused by name, what is kept is as it was, and never a gap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select

from control_plane import log_tail, times
from control_plane.compaction import LogCompactor
from control_plane.database import events, operations, schema
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from control_plane.transitions import created_event, note_event
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    CreateOperationRequest,
    Operation,
    OperationEvent,
    WatchOperationResponse,
)
from everstep.errors import EverstepError, Reason
from everstep.rpc.options import open_channel
from tests.control_plane.conftest import Client, StartTrainer, refused, strategy
from tests.control_plane.earlier_version import insert_row, migrate_to
from tests.control_plane.scripted_trainer import until
from tests.services.processes import ServiceProcess


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.migrate()
    yield database
    database.close()


async def create(database: Database, notes: int) -> str:
    """An operation in the queue whose log has so many notes after its first event."""
    service = Operations(database, EventLog(database), lambda: None)
    created = await service.create(CreateOperationRequest(strategy=strategy()))
    if notes:
        await add_notes(database, created.operation_id, notes)
    return created.operation_id


async def add_notes(database: Database, operation_id: str, count: int) -> None:
    entries = [note_event("TEST", f"note {number}", 0) for number in range(count)]
    await database.write(events.append, operation_id, entries)


async def get(database: Database, operation_id: str) -> Operation:
    return await Operations(database, EventLog(database), lambda: None).get(operation_id)


async def watch(log: EventLog, operation_id: str, after: int, last: int) -> list[OperationEvent]:
    """The events after a sequence, up to another one."""
    seen: list[OperationEvent] = []
    async with aclosing(log.watch(operation_id, after)) as responses:
        async for response in responses:
            seen.extend(WatchOperationResponse.FromString(response).batch.events)
            if seen and seen[-1].sequence >= last:
                break
    return seen


def kept(connection: Connection, operation_id: str) -> tuple[int, int, int]:
    """First and last sequence of the rows that are there, and how many they are."""
    sequence = schema.events.c.sequence
    row = connection.execute(
        select(func.min(sequence), func.max(sequence), func.count()).where(
            schema.events.c.operation_id == operation_id
        )
    ).one()
    return row[0], row[1], row[2]


async def test_what_is_kept_is_as_it_was_and_what_is_not_is_refused(database: Database) -> None:
    operation_id, other = await create(database, 49), await create(database, 9)
    log = EventLog(database)
    before = await watch(log, operation_id, 0, 50)
    await LogCompactor(database, keep_events=10, keep_days=0).compact()

    assert (await get(database, operation_id)).first_sequence == 41
    assert await database.read(kept, operation_id) == (41, 50, 10)
    for after in (0, 1, 39):
        with pytest.raises(EverstepError) as caught:
            await watch(log, operation_id, after, 50)
        assert caught.value.reason is Reason.HISTORY_COMPACTED
        assert caught.value.status == "OUT_OF_RANGE"
        assert caught.value.metadata == {"first_sequence": "41"}
        assert "watch after 40" in caught.value.message
    assert await watch(log, operation_id, 40, 50) == before[40:]

    await add_notes(database, operation_id, 1)
    assert [e.sequence for e in await watch(log, operation_id, 48, 51)] == [49, 50, 51]
    assert (await get(database, other)).first_sequence == 1
    assert await database.read(kept, other) == (1, 10, 10)


async def test_a_finished_operation_keeps_its_last_event(database: Database) -> None:
    operation_id, queued = await create(database, 20), await create(database, 20)
    service = Operations(database, EventLog(database), lambda: None)
    await service.cancel(operation_id, discard=False)
    young = LogCompactor(database, keep_events=0, keep_days=1)
    await young.compact()
    assert await database.read(kept, operation_id) == (1, 22, 22)

    def age(connection: Connection) -> None:
        operations.set_values(connection, operation_id, end_time=times.after(-25 * 60 * 60))

    await database.write(age)
    await young.compact()
    assert await database.read(kept, operation_id) == (22, 22, 1)
    assert await database.read(kept, queued) == (1, 21, 21)
    (last,) = await watch(EventLog(database), operation_id, 21, 22)
    assert last.state_changed.reason == "CANCELLED_IN_QUEUE"


async def test_a_watcher_that_is_overtaken_is_told_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "PAGE_ENTRIES", 10)
    monkeypatch.setattr(log_tail, "TAIL_ENTRIES", 10)
    operation_id = await create(database, 99)
    async with aclosing(EventLog(database).watch(operation_id, 0)) as responses:
        seen: list[int] = []
        while len(seen) < 20:
            batch = WatchOperationResponse.FromString(await anext(responses)).batch
            seen += [event.sequence for event in batch.events]
        await LogCompactor(database, keep_events=50, keep_days=0).compact()
        with pytest.raises(EverstepError) as caught:
            await anext(responses)
    assert caught.value.reason is Reason.HISTORY_COMPACTED
    assert caught.value.metadata == {"first_sequence": "51"}
    assert seen == list(range(1, 21))


async def test_a_tail_that_is_overtaken_leaves_no_gap(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest entries are read for all watchers at once: compacted, they are refused to all."""
    monkeypatch.setattr(log_tail, "PAGE_ENTRIES", 10)
    operation_id = await create(database, 0)
    log = EventLog(database)
    async with aclosing(log.watch(operation_id, 0)) as responses:
        batch = WatchOperationResponse.FromString(await anext(responses)).batch
        assert [event.sequence for event in batch.events] == [1]
        await add_notes(database, operation_id, 99)
        await LogCompactor(database, keep_events=50, keep_days=0).compact()
        log.wake(operation_id)
        with pytest.raises(EverstepError) as caught:
            await anext(responses)
        assert caught.value.reason is Reason.HISTORY_COMPACTED
    assert [e.sequence for e in await watch(log, operation_id, 50, 100)] == list(range(51, 101))


async def test_pages_are_bounded_by_bytes(database: Database) -> None:
    operation_id = await create(database, 0)
    large = [note_event("TEST", "x" * 100_000, 0) for _ in range(7)]
    huge = [note_event("TEST", "y" * (2 * log_tail.PAGE_BYTES), 0)]
    await database.write(events.append, operation_id, [*large, *huge, *large])
    sizes = []
    async with aclosing(EventLog(database).watch(operation_id, 0)) as responses:
        sequences: list[int] = []
        async for response in responses:
            batch = WatchOperationResponse.FromString(response).batch
            sequences += [event.sequence for event in batch.events]
            sizes.append((len(batch.events), len(response)))
            if sequences[-1] == 16:
                break
    assert sequences == list(range(1, 17))
    assert all(count == 1 or size < log_tail.PAGE_BYTES + 100 for count, size in sizes)


async def test_a_log_from_before_there_was_compaction_begins_with_1(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'earlier.db'}")

    def fill(connection: Connection) -> None:
        migrate_to(connection, "0001")
        insert_row(
            connection,
            "operations",
            operation_id="op-1",
            state="PENDING",
            metrics="{}",
            last_sequence=1,
        )
        created = created_event("created")
        created.sequence = 1
        payload = created.SerializeToString()
        insert_row(connection, "events", operation_id="op-1", sequence=1, payload=payload)

    await database.write(fill)
    await database.migrate()
    assert (await get(database, "op-1")).first_sequence == 1
    assert len(await watch(EventLog(database), "op-1", 0, 1)) == 1
    database.close()


async def test_a_killed_compaction_leaves_a_whole_log_and_the_next_one_finishes_it(
    control_plane: ServiceProcess, database_url: str, start_trainer: StartTrainer
) -> None:
    """And the attempt that runs meanwhile goes on, whatever of it is not kept any more."""
    database = Database(database_url)
    trainer = await start_trainer()
    async with open_channel(control_plane.address) as channel:
        client = Client(channel)
        operation_id = await client.create()
        training = await trainer.begun(operation_id)
        for number in range(20):
            training.epoch(number)
        await client.watch(operation_id, lambda event: event.progress.index == 20)
        control_plane.kill()
        await add_notes(database, operation_id, 30_000)
        last = 30_022
        control_plane.settings["EVERSTEP_KEEP_EVENTS"] = "100"
        control_plane.launch()
        first, newest, count = 1, last, last
        while first == 1:
            first, newest, count = await database.read(kept, operation_id)
        control_plane.kill()
        first, newest, count = await database.read(kept, operation_id)
        assert (newest, count) == (last, last - first + 1)
        assert (await get(database, operation_id)).first_sequence == first

        control_plane.start()
        while first < last - 99:
            first, newest, count = await database.read(kept, operation_id)
            assert count == newest - first + 1
        trainer.break_streams()
        training.epoch(20)
        training.complete()
        await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
        error = await refused(client.watch(operation_id))
        assert error.reason is Reason.HISTORY_COMPACTED
        first = int(error.metadata["first_sequence"])
        rest = await client.watch(operation_id, after_sequence=first - 1)
        assert [event.sequence for event in rest] == list(range(first, last + 4))
        indexes = [event.progress.index for event in rest if event.HasField("progress")]
        assert indexes == [21, 22]
    await until(lambda: trainer.forgotten, "the attempt to be forgotten")
    database.close()
