"""`everstep up`: the whole of Everstep on this machine."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from everstep.cli.console import data, messages, print_rows
from everstep.local_stack import LocalStack, StackPorts


def up(
    folder: Annotated[Path, typer.Option(help="Holds all state: database, objects, logs.")] = Path(
        ".everstep"
    ),
    data_root: Annotated[
        Path, typer.Option(help="Strategies name data files relative to it.")
    ] = Path("data"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the control plane; 0: any.")
    ] = 7070,
    trainer_port: Annotated[int, typer.Option(min=0, max=65535)] = 7071,
    store_port: Annotated[int, typer.Option(min=0, max=65535)] = 7072,
    dashboard_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the page in the browser.")
    ] = 7080,
) -> None:
    """Run control plane, trainer and object store here; Ctrl-C stops them, trainings are saved."""
    console = messages()
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    stack = LocalStack(
        folder,
        StackPorts(port, trainer_port, store_port, dashboard_port),
        data_root,
        lambda text: console.print(f"[yellow]![/] {text}", highlight=False),
    )
    console.print("starting")
    with stack.running():
        print_rows(
            ("SERVICE", "ADDRESS", "PROCESS", "LOG"),
            ((name, address, str(pid), log) for name, address, pid, log in stack.rows()),
        )
        console.print(f"objects are in {stack.store_described}", soft_wrap=True)
        console.print(f"dashboard: {stack.dashboard_url}", soft_wrap=True)
        address = "" if stack.address == "127.0.0.1:7070" else f" --address {stack.address}"
        data().print(f"ready: everstep train STRATEGY.yaml{address}", soft_wrap=True)
        while not stop.wait(0.5):
            stack.keep_running()
        console.print("stopping; what runs is checkpointed")
    console.print("stopped")
