"""A round of the dispatcher over a long queue: what it costs, and who waits how long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, update

from control_plane import times
from control_plane.assignment import AT_A_TIME, Round, assign_round
from control_plane.creation import PRIORITY_SECONDS
from control_plane.database import attempts, operations, queue, schema, trainers
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from control_plane.placement import labels_text
from control_plane.states import State
from everstep.control.v1.operations_pb2 import CreateOperationRequest
from tests.control_plane.conftest import strategy


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.migrate()
    yield database
    database.close()


async def create(database: Database, **fields: Any) -> str:
    service = Operations(database, EventLog(database), lambda: None)
    request = CreateOperationRequest(strategy=strategy(), **fields)
    return (await service.create(request)).operation_id


async def register(database: Database, trainer_id: str, capacity: int = 1, **labels: str) -> None:
    await database.write(
        trainers.register,
        trainer_id,
        "127.0.0.1:1",
        capacity,
        b"",
        times.after(600),
        False,
        labels_text(labels),
        times.now(),
    )


async def decide(database: Database) -> Round:
    return await database.write(assign_round, "test", 60.0, frozenset[str]())


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is said to the database meanwhile."""
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(database._engine, "before_cursor_execute", note)
    yield said
    event.remove(database._engine, "before_cursor_execute", note)


async def test_a_round_does_not_go_through_the_queue(database: Database) -> None:
    """Nothing is said for each that waits, and nothing written; what is begun costs the same."""
    await register(database, "trainer-0", capacity=AT_A_TIME)
    said: dict[int, tuple[list[str], list[str]]] = {}
    for waiting in (3, 120):
        for number in range(waiting):
            await create(database, trainer_labels={"gpu": "h100"}, display_name=str(number))
        with statements(database) as idle:
            assert not (await decide(database)).begun
        runs = await create(database)
        with statements(database) as busy:
            assert [each.operation_id for each in (await decide(database)).begun] == [runs]
        said[waiting] = (idle, busy)
    assert said[3] == said[120]
    # Those that ask the same are one to it.
    assert len(await database.read(queue.demands, State.PENDING, times.now())) == 1
    idle, _ = said[120]
    assert not [
        each for each in idle if not each.lstrip().startswith(("SELECT", "BEGIN", "PRAGMA"))
    ]


async def test_many_trainers_that_become_free_at_once_take_one_look_each(
    database: Database,
) -> None:
    """As many are begun in a transaction as may be, not one; each is given to the right one."""
    for number in range(30):
        await register(database, f"trainer-{number:02}")
    ids = [await create(database) for _ in range(50)]
    begun = [[each.operation_id for each in (await decide(database)).begun] for _ in range(3)]
    assert begun == [ids[:AT_A_TIME], ids[AT_A_TIME:30], []]
    assert set((await database.read(attempts.load_by_trainer)).values()) == {1}


async def test_those_that_ask_different_things_run_in_the_order_of_the_queue(
    database: Database,
) -> None:
    await register(database, "trainer-1", capacity=2, gpu="h100")
    await register(database, "trainer-2", capacity=1)
    wanted = [{"gpu": "h100"}, {}, {"gpu": "a100"}, {"gpu": "h100"}, {}, {"gpu": "h100"}]
    ids = [await create(database, trainer_labels=labels) for labels in wanted]
    begun = (await decide(database)).begun
    assert [each.operation_id for each in begun] == [ids[0], ids[1], ids[3]]
    assert not (await decide(database)).begun


async def test_an_hour_of_waiting_is_worth_a_point_of_priority(database: Database) -> None:
    await register(database, "trainer-1", capacity=3)
    old = await create(database)
    await database.write(_age, old, 2 * PRIORITY_SECONDS + 60)
    two, three = await create(database, priority=2), await create(database, priority=3)
    begun = (await decide(database)).begun
    assert [each.operation_id for each in begun] == [three, old, two]


def _age(connection: Connection, operation_id: str, seconds: float) -> None:
    """As if it had been created so much earlier."""
    created = times.after(-seconds)
    connection.execute(
        update(schema.operations)
        .where(schema.operations.c.operation_id == operation_id)
        .values(create_time=created, queue_time=created)
    )
    assert operations.find(connection, operation_id) is not None
