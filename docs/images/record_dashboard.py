"""Trains on a local stack, kills what trains, and takes pictures of the dashboard (make picture).

Needs Chromium: `apt-get install chromium`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_FAILED,
    CreateOperationRequest,
    GetOperationRequest,
    Operation,
)
from everstep.control.v1.operations_pb2_grpc import OperationServiceStub
from everstep.local_stack import LocalStack, StackPorts
from everstep.rpc.options import open_sync_channel
from everstep.strategy import parse_strategy, read_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.browser import FLAGS, chromium

FOLDER: Final = Path(__file__).parent
STRATEGIES: Final = FOLDER.parents[1] / "strategies"


def digits(rate: float, epochs: int) -> TrainingStrategy:
    """A CNN on handwritten digits."""
    return parse_strategy(
        {
            "name": "digits-cnn",
            "seed": 7,
            "data": {"source": "builtin:digits", "target": "label"},
            "model": {"factory": "cnn", "args": {"channels": [24, 48], "dropout": 0.2}},
            "loss": "cross_entropy",
            "optimizer": {"name": "AdamW", "args": {"lr": rate}},
            "scheduler": {"name": "CosineAnnealingLR", "args": {"T_max": epochs}},
            "training": {"epochs": epochs, "batch_size": 8, "gradient_clip": 1.0},
            "checkpoint": {"every_steps": 400, "keep_last": 4},
        }
    )


class Operations:
    """What this needs of the control plane."""

    def __init__(self, stub: OperationServiceStub) -> None:
        self._stub = stub

    def create(self, strategy: TrainingStrategy, name: str, labels: dict[str, str]) -> str:
        request = CreateOperationRequest(strategy=strategy, display_name=name, labels=labels)
        return self._stub.CreateOperation(request, timeout=30).operation_id

    def get(self, operation_id: str) -> Operation:
        return self._stub.GetOperation(GetOperationRequest(operation_id=operation_id), timeout=30)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="everstep-dashboard-") as folder:
        stack = LocalStack(Path(folder), StackPorts(0, 0, 0, 0), Path(folder), print)
        with (
            stack.running(),
            open_sync_channel(stack.address) as channel,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(
                executable_path=chromium(), headless=True, args=FLAGS
            )
            _record(stack, Operations(OperationServiceStub(channel)), browser)
            browser.close()
    return 0


def _record(stack: LocalStack, operations: Operations, browser: Browser) -> None:
    diverging = digits(0.002, 12)
    diverging.training.gradient_clip = 0
    diverging.optimizer.args["lr"] = 1e30
    made = [
        operations.create(strategy, name, labels)
        for strategy, name, labels in (
            (read_strategy(STRATEGIES / "diabetes-mlp.yaml"), "diabetes", {"team": "clinic"}),
            (digits(0.0005, 10), "digits, lr 0.0005", {"team": "vision", "sweep": "lr"}),
            (digits(0.004, 10), "digits, lr 0.004", {"team": "vision", "sweep": "lr"}),
            (diverging, "digits, lr 1e30", {"team": "vision", "sweep": "lr"}),
            (digits(0.002, 30), "digits, long", {"team": "vision"}),
            (read_strategy(STRATEGIES / "stocks-gru.yaml"), "stocks", {"team": "desk"}),
        )
    ]
    _, slow, fast, failing, long, _ = made
    _until(operations, failing, lambda operation: operation.state == OPERATION_STATE_FAILED)
    url = stack.dashboard_url
    wide = browser.new_page(viewport={"width": 1180, "height": 1290}, color_scheme="light")
    wide.goto(f"{url}#/operations/{long}")
    _until(operations, long, lambda operation: operation.position.epoch >= 2)
    os.kill(operations.get(long).attempts[-1].process_id, signal.SIGKILL)
    _until(operations, long, lambda operation: operation.position.epoch >= 4)
    stack.trainer.kill()
    stack.keep_running()
    _until(operations, long, lambda operation: operation.position.epoch >= 7)
    wide.screenshot(path=FOLDER / "dashboard-operation.png")
    phone = browser.new_page(
        viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=1.5
    )
    _take(phone, f"{url}#/operations/{long}", "dashboard-phone.png")
    wide.set_viewport_size({"width": 1180, "height": 620})
    _take(wide, f"{url}#/", "dashboard-list.png")
    wide.emulate_media(color_scheme="dark")
    wide.set_viewport_size({"width": 1180, "height": 900})
    _take(wide, f"{url}#/compare/{slow}/{fast}", "dashboard-compare.png")


def _take(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.wait_for_selector('#connection[data-status="live"]')
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / name)


def _until(
    operations: Operations, operation_id: str, condition: Callable[[Operation], bool]
) -> None:
    while not condition(operations.get(operation_id)):
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
