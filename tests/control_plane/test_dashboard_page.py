"""The page in a real browser, shown what a scripted trainer says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route, async_playwright, expect

from everstep.control.v1.operations_pb2 import OPERATION_STATE_CANCELLING
from everstep.errors import Reason
from tests.control_plane.conftest import Client
from tests.control_plane.dashboard_client import control_plane_with_dashboard
from tests.control_plane.scripted_trainer import ScriptedTrainer, ScriptedTraining
from tests.services.browser import FLAGS, RECORDER, Witness, chromium
from tests.services.processes import ServiceProcess


@pytest.fixture
def control_plane(tmp_path: Path, store_settings: dict[str, str]) -> Iterator[ServiceProcess]:
    process = control_plane_with_dashboard(tmp_path, store_settings).start()
    yield process
    process.kill()


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    path = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        page = await browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        yield page
        await browser.close()


def train(training: ScriptedTraining, steps: range, loss: float) -> None:
    """Durable samples of the curve."""
    for step in steps:
        training.say(
            step=step,
            fraction=step / 200,
            step_metrics={"loss": loss + 1 / step, "learning_rate": 0.01},
        )


def described(page: Page) -> Any:
    return expect(page.locator('[data-chart="Loss"] .plot'))


async def test_steps_done_again_are_drawn_once_with_the_newest_values_and_a_mark(
    client: Client, control_plane: ServiceProcess, trainer: ScriptedTrainer, page: Page
) -> None:
    operation_id = await client.create()
    witness = Witness(page, control_plane.dashboard_url)
    await page.goto(f"{control_plane.dashboard_url}#/operations/{operation_id}")
    first = await trainer.begun(operation_id)
    train(first, range(10, 110, 10), loss=1)
    first.commit(first.checkpoint(100))
    train(first, range(110, 160, 10), loss=1)
    await described(page).to_have_attribute(
        "aria-label",
        "loss: 15 points to step 150, 1.007; 0 attempt marks, 0 restart marks, 1 checkpoint mark",
    )

    first.fail(Reason.TRAINER_RESTARTED, restartable=True)
    second = await trainer.begun(operation_id, 2)
    train(second, range(110, 130, 10), loss=2)
    await described(page).to_have_attribute(
        "aria-label",
        "loss: 12 points to step 120, 2.008; 1 attempt mark, 0 restart marks, 1 checkpoint mark",
    )
    second.say(
        step=120,
        training_restarted={"cause": "signal SIGKILL", "from_step": 110, "source": "memory"},
    )
    train(second, range(120, 140, 10), loss=3)
    await described(page).to_have_attribute(
        "aria-label",
        "loss: 13 points to step 130, 3.008; 1 attempt mark, 1 restart mark, 1 checkpoint mark",
    )
    await expect(page.locator(".history")).to_contain_text("training process died (signal SIGKILL)")

    # A page that comes later draws the same from the log alone.
    await page.reload()
    await described(page).to_have_attribute(
        "aria-label",
        "loss: 13 points to step 130, 3.008; 1 attempt mark, 1 restart mark, 1 checkpoint mark",
    )
    assert witness.errors == []
    assert witness.strangers() == []


async def test_a_hidden_page_listens_to_nothing_and_goes_on_where_it_was(
    client: Client, control_plane: ServiceProcess, trainer: ScriptedTrainer, page: Page
) -> None:
    operation_id = await client.create()
    await page.add_init_script(RECORDER)
    await page.goto(f"{control_plane.dashboard_url}#/operations/{operation_id}")
    training = await trainer.begun(operation_id)
    train(training, range(10, 60, 10), loss=1)
    await described(page).to_have_attribute("aria-label", re.compile("^loss: 5 points"))
    await _set_hidden(page, True)
    train(training, range(60, 110, 10), loss=1)
    await client.watch(operation_id, lambda event: event.progress.position.step == 100)
    assert await page.evaluate("window.sequences.length") == 7
    await _set_hidden(page, False)
    await described(page).to_have_attribute("aria-label", re.compile("^loss: 10 points"))
    assert await page.evaluate("window.sequences") == list(range(1, 13))


async def _set_hidden(page: Page, hidden: bool) -> None:
    await page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


async def test_work_at_risk_is_shown_while_a_training_runs(
    client: Client, control_plane: ServiceProcess, trainer: ScriptedTrainer, page: Page
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.say(
        step=50,
        at_risk={
            "steps_since_checkpoint": 37,
            "seconds_since_checkpoint": 75,
            "steps_since_snapshot": 4,
            "upload_lag_seconds": 90,
            "stall_share": 0.004,
        },
        step_metrics={"loss": 0.5},
    )
    await page.goto(f"{control_plane.dashboard_url}#/operations/{operation_id}")
    risk = page.locator('[data-tile="Work at risk"]')
    await expect(risk).to_contain_text("37 steps")
    await expect(risk).to_contain_text("1 min 15 s since a checkpoint; 4 if only the process dies")
    await expect(risk).to_have_attribute("data-level", "warn")
    await expect(page.locator('[data-tile="Training waited"]')).to_contain_text("0.4 %")
    await client.cancel(operation_id)
    await client.until_state(operation_id, OPERATION_STATE_CANCELLING)
    training.say(step=51, cancelled={})
    await expect(page.locator(".operation-head .badge")).to_have_text("cancelled")
    await expect(risk).to_have_count(0)


async def test_what_keeps_a_training_from_being_heard_is_shown_while_it_does(
    client: Client, control_plane: ServiceProcess, trainer: ScriptedTrainer, page: Page
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    training.epoch(0)
    await page.goto(f"{control_plane.dashboard_url}#/operations/{operation_id}")
    trouble = page.locator("#trouble")
    await expect(trouble).to_contain_text("stalled since")
    training.epoch(1)
    await expect(trouble).to_have_count(0)
    await trainer.stop_serving()
    await expect(trouble).to_contain_text("unreachable since")
    await expect(page.locator(".history")).to_contain_text("cannot be reached")
    await page.goto(f"{control_plane.dashboard_url}#/")
    await expect(page.locator(".row .progress")).to_contain_text("unreachable")
    await trainer.start()
    await expect(page.locator(".row .progress")).not_to_contain_text("unreachable")


async def test_a_log_that_begins_later_is_shown_from_there(
    client: Client, control_plane: ServiceProcess, trainer: ScriptedTrainer, page: Page
) -> None:
    operation_id = await client.create()
    training = await trainer.begun(operation_id)
    train(training, range(10, 110, 10), loss=1)
    said = False

    async def compact(route: Route) -> None:
        """The service's answer for a log of which the first five events are gone; then itself."""
        nonlocal said
        if said:
            await route.continue_()
            return
        said = True
        compacted = 'retry: 10\nid: 5\nevent: compacted\ndata: {"first_sequence": 6}\n\n'
        await route.fulfill(content_type="text/event-stream", body=compacted)

    await page.route("**/events?*", compact)
    await page.goto(f"{control_plane.dashboard_url}#/operations/{operation_id}")
    await expect(page.locator(".history")).to_contain_text(
        "What is older than event 6 is not kept any more."
    )
    # Created, dispatched, and the first three samples are what is gone.
    await described(page).to_have_attribute("aria-label", re.compile("^loss: 7 points"))


async def test_no_view_is_wider_than_a_phone(
    client: Client, control_plane: ServiceProcess, trainer: ScriptedTrainer, page: Page
) -> None:
    long = "withoutaplacetobreak" * 8
    operation_id = await client.create(display_name=long, labels={"label": long})
    training = await trainer.begun(operation_id)
    train(training, range(10, 60, 10), loss=1)
    training.epoch(0, train_loss=1.0, val_loss=2.0, val_accuracy=0.5)
    training.commit(training.checkpoint(50))
    other = await client.create()
    for view, sign in (
        ("", ".row"),
        (f"operations/{operation_id}", "#checkpoints tbody tr"),
        (f"compare/{operation_id}/{other}", ".chip"),
    ):
        await page.goto(f"{control_plane.dashboard_url}#/{view}")
        await expect(page.locator(sign).first).to_be_visible()
        widths = await page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert widths[0] <= widths[1], view
