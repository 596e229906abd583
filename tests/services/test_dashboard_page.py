"""The page in a real browser, over real services: live, pressed, cut off, compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import grpc
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from everstep.control.v1.checkpoints_pb2 import GetCheckpointRequest
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_CANCELLED,
    OPERATION_STATE_RUNNING,
)
from tests.services.browser import FLAGS, PATIENCE_MILLISECONDS, RECORDER, Witness, chromium
from tests.services.processes import ServiceProcess, wait_for
from tests.services.stack import Stack
from tests.services.strategies import digits

HOSTILE = """<img src=x onerror="document.body.replaceChildren()">"""


@pytest.fixture
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def stack(
    make_control_plane: Callable[..., ServiceProcess],
    make_trainer: Callable[..., ServiceProcess],
    connect: Callable[[ServiceProcess], grpc.Channel],
) -> Stack:
    control_plane = make_control_plane(EVERSTEP_DASHBOARD_LISTEN="127.0.0.1:0").start()
    trainer = make_trainer(EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    return Stack(control_plane, trainer, connect)


def test_a_training_is_watched_and_steered_in_the_browser(browser: Browser, stack: Stack) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    page.add_init_script(RECORDER)
    witness = Witness(page, stack.control_plane.dashboard_url)
    page.goto(stack.control_plane.dashboard_url)
    expect(page.get_by_text("No operations yet")).to_be_visible()
    loaded = page.evaluate("performance.timeOrigin")

    # The list shows what is created, and how it goes, by itself.
    short = stack.create(digits(epochs=2), display_name=HOSTILE, labels={"owner": HOSTILE})
    row = page.locator(f"[data-operation={short}]")
    expect(row.locator(".name")).to_have_text(HOSTILE)
    expect(row.locator(".badge")).to_have_text("running")
    seen = {row.locator(".progress").inner_text()}
    while row.locator(".badge").inner_text() != "completed":
        seen.add(row.locator(".progress").inner_text())
    seen.add(row.locator(".progress").inner_text())
    assert len(seen) > 2, seen

    operation_id = stack.create(digits(epochs=60, checkpoint={"every_steps": 0, "keep_last": 5}))
    page.locator(f"[data-operation={operation_id}] .name").click()
    expect(badge(page)).to_have_text("running")
    _curves_grow(page)
    _take_and_pin_a_checkpoint(page, stack, operation_id)
    _cut_off(page, stack)
    _cancel_and_resume(page, stack, operation_id)
    _compare(page, short, operation_id)

    assert page.evaluate("performance.timeOrigin") == loaded
    assert page.locator("img:not(.brand img)").count() == 0
    assert witness.errors == []
    assert witness.strangers() == []
    assert witness.refused == [(400, f"operations/{operation_id}:resume")]


def badge(page: Page) -> Locator:
    return page.locator(".operation-head .badge")


def points(page: Page, chart: str, series: str) -> int:
    """How many points a chart says that it shows."""
    plot = page.locator(f'[data-chart="{chart}"] .plot')
    said = plot.get_attribute("aria-label") or ""
    found = re.search(rf"(?:^|; ){re.escape(series)}: (\d+) points", said)
    return int(found[1]) if found else 0


def _curves_grow(page: Page) -> None:
    few = wait_for(lambda: points(page, "Loss", "loss"), "the loss by step")
    wait_for(lambda: points(page, "Loss", "loss") > few + 5, "the loss to grow")
    wait_for(lambda: points(page, "Accuracy", "val accuracy"), "a metric of an epoch")
    wait_for(lambda: points(page, "Learning rate", "learning rate"), "the learning rate")
    page.get_by_role("button", name="Epochs").click()
    expect(page.locator('[data-chart="Loss"] .plot')).to_have_attribute(
        "aria-label", re.compile("points to epoch")
    )


def _take_and_pin_a_checkpoint(page: Page, stack: Stack, operation_id: str) -> None:
    page.get_by_role("button", name="Checkpoint now").click()
    row = page.locator("#checkpoints tbody tr", has_text="requested")
    row.get_by_role("button", name="Pin").click()
    expect(row.get_by_role("button", name="Unpin")).to_be_visible()
    name = row.get_attribute("data-checkpoint") or ""
    asked = GetCheckpointRequest(checkpoint_id=name)
    kept = stack.checkpoints.GetCheckpoint(asked, timeout=30)
    assert kept.pinned
    assert kept.operation_id == operation_id


def _cut_off(page: Page, stack: Stack) -> None:
    """The control plane is killed; the page takes the stream up again by itself."""
    connection = page.locator("#connection")
    expect(connection).to_have_attribute("data-status", "live")
    stack.control_plane.kill()
    expect(connection).not_to_have_attribute("data-status", "live")
    before = page.evaluate("window.sequences.at(-1)")
    stack.control_plane.start()
    expect(connection).to_have_attribute("data-status", "live")
    page.wait_for_function("before => window.sequences.at(-1) > before", arg=before)


def _cancel_and_resume(page: Page, stack: Stack, operation_id: str) -> None:
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel training").click()
    expect(badge(page)).to_have_text("cancelled")
    assert stack.get(operation_id).state == OPERATION_STATE_CANCELLED
    page.get_by_role("button", name="Resume", exact=True).click()
    dialog = page.locator("dialog")
    dialog.locator("[name=epochs]").fill("1")
    dialog.get_by_role("button", name="Resume").click()
    expect(dialog.get_by_role("alert")).to_contain_text("made for 60 epochs")
    dialog.locator("[name=epochs]").fill("")
    dialog.get_by_role("button", name="Resume").click()
    expect(badge(page)).to_have_text("running")
    assert stack.get(operation_id).state == OPERATION_STATE_RUNNING
    plot = page.locator('[data-chart="Loss"] .plot')
    expect(plot).to_have_attribute("aria-label", re.compile("1 attempt mark,"))

    # Every durable event came once and in order, over the kill and the resume.
    sequences = page.evaluate("window.sequences")
    assert sequences == list(range(1, len(sequences) + 1))


def _compare(page: Page, first: str, second: str) -> None:
    page.locator(".brand").click()
    for operation_id in (first, second):
        page.locator(f"[data-operation={operation_id}] input").check()
    page.get_by_role("link", name="Compare").click()
    wait_for(lambda: points(page, "Val loss", HOSTILE), "the first curve")
    wait_for(lambda: points(page, "Val loss", "digits-cnn"), "the second curve")
    expect(page.locator(".chip")).to_have_count(2)
    expect(page.locator("tbody tr")).to_have_count(2)
