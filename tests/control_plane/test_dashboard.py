"""The dashboard over HTTP: the domain's rules and errors, streams without a gap, no strangers."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.dashboard.event_stream import EventStreams
from control_plane.dashboard.operation_feed import OperationFeed
from control_plane.dashboard.routes import STATIC
from control_plane.database import events
from control_plane.database.session import Database
from control_plane.event_log import EventLog
from control_plane.operations import Operations
from control_plane.transitions import note_event
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_COMPLETED,
    OPERATION_STATE_FAILED,
    CreateOperationRequest,
    DeleteOperationRequest,
    WatchOperationResponse,
)
from everstep.errors import EverstepError, Reason
from tests.control_plane.conftest import Client, strategy
from tests.control_plane.dashboard_client import (
    Dashboard,
    Sent,
    control_plane_with_dashboard,
    sequences,
)
from tests.control_plane.scripted_trainer import ScriptedTrainer, until
from tests.services.processes import ServiceProcess

UNKNOWN = "op-0123456789ab"


@pytest.fixture
def control_plane(tmp_path: Path, store_settings: dict[str, str]) -> Iterator[ServiceProcess]:
    process = control_plane_with_dashboard(tmp_path, store_settings).start()
    yield process
    process.kill()


@pytest.fixture
def dashboard(control_plane: ServiceProcess) -> Dashboard:
    return Dashboard(control_plane.dashboard_url)


def ended(sent: Sent) -> bool:
    return any(
        "COMPLETED" in event.get("state_changed", {}).get("to", "") for event in sent.content
    )


async def test_a_stream_broken_off_anywhere_goes_on_after_its_last_event_id(
    client: Client, trainer: ScriptedTrainer, dashboard: Dashboard
) -> None:
    operation_id = await client.create()
    path = f"/operations/{operation_id}/events"
    training = await trainer.begun(operation_id)

    async def append() -> None:
        for number in range(600):
            training.say(step=number + 1, warning={"reason": "TEST", "message": f"word {number}"})
            if number % 50 == 0:
                training.show(number + 1, 0.5)
                await asyncio.sleep(0.02)
        training.complete()

    async def follow() -> list[int]:
        numbers = random.Random(3)
        seen: list[int] = []
        last_id = ""
        over = False
        while not over:
            left = numbers.randint(1, 3)

            def enough(_sent: Sent) -> bool:
                nonlocal left
                left -= 1
                return left == 0 or ended(_sent)

            sent = await dashboard.read(path, enough, last_id)
            seen += sequences(sent)
            last_id = sent[-1].last_id
            over = ended(sent[-1])
        return seen

    appending = asyncio.create_task(append())
    seen = await follow()
    await appending
    last = (await client.get(operation_id)).last_sequence
    assert seen == list(range(1, last + 1))
    assert len(seen) > 600


async def test_the_query_says_where_to_begin_and_last_event_id_wins(
    client: Client, trainer: ScriptedTrainer, dashboard: Dashboard
) -> None:
    operation_id = await client.create()
    (await trainer.begun(operation_id)).complete()
    await client.until_state(operation_id, OPERATION_STATE_COMPLETED)
    path = f"/operations/{operation_id}/events"
    assert sequences(await dashboard.read(path, ended)) == [1, 2, 3, 4]
    assert sequences(await dashboard.read(path + "?after_sequence=2", ended)) == [3, 4]
    assert sequences(await dashboard.read(path + "?after_sequence=1", ended, "3")) == [4]


async def test_a_stream_outlives_the_end_of_its_operation(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'database.db'}")
    await database.migrate()
    log = EventLog(database)
    operations = Operations(database, log, lambda: None)
    operation = await operations.create(CreateOperationRequest(strategy=strategy()))
    await operations.cancel(operation.operation_id, discard=False)
    ends = asyncio.Event()
    whole = log.watch

    async def watch(operation_id: str, after: int) -> AsyncIterator[WatchOperationResponse]:
        async for response in whole(operation_id, after):
            yield response
        ends.set()

    log.watch = watch  # type: ignore[method-assign,assignment]
    stream = EventStreams(log).of_one(operation.operation_id, 0)
    await anext(stream)
    assert (await anext(stream)).id == "2"
    news = asyncio.ensure_future(anext(stream))
    await ends.wait()
    later = note_event("TEST", "said after the end", 0)
    await database.write(events.append, operation.operation_id, [later])
    sent = await news
    await stream.aclose()
    database.close()
    assert sent.id == "3"
    assert str(sent.data).count('"sequence"') == 1


async def test_several_logs_come_in_one_stream_which_is_taken_up_again(
    client: Client, trainer: ScriptedTrainer, dashboard: Dashboard
) -> None:
    first, second = await client.create(), await client.create()
    training = await trainer.begun(first)
    for step in range(1, 6):
        training.say(step=step, warning={"reason": "TEST", "message": "a word"})
    training.complete()
    (await trainer.begun(second)).complete()
    await client.until_state(second, OPERATION_STATE_COMPLETED)
    path = f"/events?after={first}=0%20{second}=2"
    seen: dict[str, list[int]] = {first: [], second: []}
    last_id = ""
    while len(seen[first]) + len(seen[second]) < 9 + 2:
        sent = await dashboard.read(path, lambda _sent: True, last_id)
        last_id = sent[-1].last_id
        for event in sent[-1].content:
            seen[event["operation_id"]].append(int(event["sequence"]))
    assert seen == {first: list(range(1, 10)), second: [3, 4]}


async def test_what_is_compacted_is_said_and_the_rest_follows(tmp_path: Path) -> None:
    """Over a log whose older part is gone, as `WatchOperation` says it in the contract."""
    database = Database(f"sqlite:///{tmp_path / 'database.db'}")
    await database.migrate()
    log = EventLog(database)
    operation = await Operations(database, log, lambda: None).create(
        CreateOperationRequest(strategy=strategy())
    )
    await Operations(database, log, lambda: None).cancel(operation.operation_id, discard=False)
    whole = log.watch

    def compacted(operation_id: str, after: int) -> AsyncIterator[WatchOperationResponse]:
        if after < 1:
            raise EverstepError(Reason.HISTORY_COMPACTED, "gone", metadata={"first_sequence": "2"})
        return whole(operation_id, after)

    log.watch = compacted  # type: ignore[method-assign,assignment]
    stream = EventStreams(log).of_one(operation.operation_id, 0)
    sent = [await anext(stream) for _ in range(3)]
    await stream.aclose()
    database.close()
    assert (sent[1].event, sent[1].id) == ("compacted", "1")
    assert '"first_sequence":2' in str(sent[1].data)
    assert (sent[2].event, sent[2].id) == ("events", "2")


async def test_a_cursor_ahead_of_the_log_is_refused_in_the_stream(
    client: Client, dashboard: Dashboard
) -> None:
    operation_id = await client.create()
    sent = await dashboard.read(
        f"/operations/{operation_id}/events", lambda _sent: True, last_id="99"
    )
    assert sent[0].event == "refused"
    assert sent[0].content["error"]["reason"] == "FUTURE_SEQUENCE"


async def test_the_list_sends_what_changed_and_what_is_gone(
    client: Client, trainer: ScriptedTrainer, dashboard: Dashboard
) -> None:
    kept, deleted = await client.create(display_name="kept"), await client.create()
    messages: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def gone(sent: Sent) -> bool:
        loop.call_soon_threadsafe(messages.put_nowait, sent.content)
        return bool(sent.content["removed"])

    reading = asyncio.create_task(dashboard.read("/operations:watch", gone))
    everything = await messages.get()
    assert everything["complete"]
    assert {operation["operation_id"] for operation in everything["changed"]} == {kept, deleted}
    assert not any("strategy" in operation for operation in everything["changed"])
    training = await trainer.begun(kept)
    training.say(step=40, fraction=0.4, warning={"reason": "TEST", "message": "on its way"})
    news: dict[str, Any] = {}
    while news.get("position", {}).get("fraction") != 0.4:
        changed = (await messages.get())["changed"]
        news = next((operation for operation in changed if operation["operation_id"] == kept), {})
    await client.cancel(deleted)
    await client.until_state(deleted, OPERATION_STATE_CANCELLED)
    await client.operations.DeleteOperation(
        DeleteOperationRequest(operation_id=deleted), timeout=10
    )
    assert (await reading)[-1].content["removed"] == [deleted]


async def test_the_feed_reads_only_what_changed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'database.db'}")
    await database.migrate()
    operations = Operations(database, EventLog(database), lambda: None)
    created = [
        await operations.create(CreateOperationRequest(strategy=strategy())) for _ in range(20)
    ]
    feed = OperationFeed(database)
    first, second = feed.subscribe(), feed.subscribe()
    for stream in (first, second):
        await anext(stream)
    seen = [str((await anext(stream)).data) for stream in (first, second)]
    assert seen[0] == seen[1]
    await operations.cancel(created[3].operation_id, discard=False)
    for stream in (first, second):
        news = str((await anext(stream)).data)
        assert re.findall(r'"operation_id":"([^"]+)"', news) == [created[3].operation_id]
    ending = [asyncio.ensure_future(anext(stream, None)) for stream in (first, second)]
    await asyncio.sleep(0)
    await feed.close()
    assert await asyncio.gather(*ending) == [None, None]
    database.close()


async def test_buttons_follow_the_same_rules_as_calls(
    client: Client, trainer: ScriptedTrainer, dashboard: Dashboard
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    one = f"/operations/{operation_id}"

    async def change(path: str, body: Any, method: str = "POST") -> Any:
        return await asyncio.to_thread(dashboard.change, path, body, method)

    refused = await change(one + ":resume", {})
    assert refused.status == 400
    assert refused.content["error"]["reason"] == "ALREADY_RUNNING"
    assert (await change(one + ":checkpoint", {})).status == 200
    assert training.checkpoint_requests == 1
    training.commit(training.checkpoint(20))
    listed: list[Any] = []
    while not listed:
        answer = await asyncio.to_thread(dashboard.get, one + "/checkpoints")
        listed = answer.content.get("checkpoints", [])
    checkpoint_id = listed[0]["reference"]["checkpoint_id"]
    pinned = await change(f"/checkpoints/{checkpoint_id}", {"pinned": True}, "PATCH")
    assert pinned.content["pinned"] is True
    training.fail(Reason.TRAINING_FAILED)
    await client.until_state(operation_id, OPERATION_STATE_FAILED)
    resumed = await change(one + ":resume", {})
    assert resumed.content["state"] == "OPERATION_STATE_PENDING"
    training = await trainer.begun(operation_id, 2)
    cancelled = await change(one + ":cancel", {"discard": True})
    assert cancelled.content["state"] == "OPERATION_STATE_CANCELLING"
    await until(lambda: training.cancel_requests, "the trainer to be told")
    assert training.cancel_requests[0].discard


def test_refusals_have_the_status_and_the_reason_of_the_call(dashboard: Dashboard) -> None:
    one = f"/operations/{UNKNOWN}"
    for method, path, body, status, reason in (
        ("GET", one, None, 404, "OPERATION_NOT_FOUND"),
        ("GET", f"{one}/events", None, 404, "OPERATION_NOT_FOUND"),
        ("GET", "/operations/UPPER", None, 400, "INVALID_REQUEST"),
        ("GET", f"{one}/events?after_sequence=x", None, 400, "INVALID_REQUEST"),
        ("GET", "/operations?page_token=x", None, 400, "INVALID_REQUEST"),
        ("GET", "/events?after=op", None, 400, "INVALID_REQUEST"),
        ("GET", "/events", None, 400, "INVALID_REQUEST"),
        ("POST", f"{one}:cancel", {}, 404, "OPERATION_NOT_FOUND"),
        ("POST", f"{one}:cancel", {"gone": 1}, 400, "INVALID_REQUEST"),
        ("POST", f"{one}:resume", {"request_id": "x"}, 400, "INVALID_REQUEST"),
        ("POST", f"{one}:cancel", "x" * 70_000, 400, "INVALID_REQUEST"),
        ("PATCH", "/checkpoints/ck-1", {"pinned": True}, 404, "CHECKPOINT_NOT_FOUND"),
    ):
        asked = dashboard.get(path) if body is None else dashboard.change(path, body, method)
        assert asked.status == status, path
        assert asked.content["error"]["reason"] == reason
        assert asked.content["error"]["message"]


def test_other_pages_and_other_names_are_refused(dashboard: Dashboard) -> None:
    path = f"/operations/{UNKNOWN}:cancel"
    own = f"{dashboard.host}:{dashboard.port}"
    for headers in (
        {"Origin": "https://elsewhere.example", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": f"http://{dashboard.host}:1"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
    ):
        answer = dashboard.change(path, {}, **headers)
        assert answer.status == 403, headers
        assert answer.content["error"]["reason"] == "ORIGIN_REFUSED"
    assert dashboard.change(path, {}).status == 404
    for host in ("elsewhere.example", f"rebound.example:{dashboard.port}", "", "127.0.0.1.evil"):
        assert dashboard.get("/operations", Host=host).status == 403, host
    for host in (own, "localhost", f"LOCALHOST:{dashboard.port}", "[::1]:80", "10.1.2.3"):
        assert dashboard.get("/operations", Host=host).status == 200, host


def test_every_answer_says_what_the_page_may_load(dashboard: Dashboard) -> None:
    for path in ("/", "/static/js/main.js", "/operations", f"/operations/{UNKNOWN}", "/nowhere"):
        headers = dashboard.get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"], path
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers


def test_the_page_is_whole_and_names_no_other_host(dashboard: Dashboard) -> None:
    page = dashboard.get("/").content.decode()
    for path in re.findall(r'(?:src|href)="(static/[^"]+)"', page):
        assert dashboard.get(f"/{path}").status == 200, path
    assert dashboard.get("/static/../server.py").status == 404
    for file in STATIC.rglob("*"):
        if file.suffix in (".js", ".css", ".html") and "vendor" not in file.parts:
            text = file.read_text()
            assert "innerHTML" not in text, file
            assert not re.search(r"https?://", text), file
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)


def test_a_name_that_is_allowed_is_answered(tmp_path: Path, store_settings: dict[str, str]) -> None:
    process = control_plane_with_dashboard(
        tmp_path,
        store_settings,
        EVERSTEP_DASHBOARD_ALLOWED_HOSTS="train.example, other.example",
    ).start()
    try:
        dashboard = Dashboard(process.dashboard_url)
        assert dashboard.get("/", Host="Train.example:443").status == 200
        assert dashboard.get("/", Host="third.example").status == 403
        taken = subprocess.run(
            [sys.executable, "-m", "control_plane"],
            env={**process.settings, "EVERSTEP_LISTEN": "127.0.0.1:0", "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert taken.returncode == 2
        assert "ADDRESS_IN_USE" in taken.stderr
        assert "EVERSTEP_DASHBOARD_LISTEN" in taken.stderr
        with dashboard.stream("/operations:watch") as news:
            next(news)
            assert process.stop() == 0
            assert list(news) == []
    finally:
        process.kill()
