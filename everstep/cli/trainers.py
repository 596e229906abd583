"""`everstep trainers ...`: who can train, and who runs what."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from everstep.calls import requests
from everstep.calls.connection import Connection
from everstep.cli.console import (
    Address,
    Output,
    OutputFormat,
    ago,
    connect,
    data,
    messages,
    print_json,
    print_rows,
)
from everstep.control.v1.trainers_pb2 import RunningAttempt, Trainer

#: Between looks at a trainer that is being emptied.
LOOK_SECONDS: Final = 0.5

app = typer.Typer(invoke_without_command=True)


@app.callback()
def list_trainers(
    context: typer.Context, address: Address = "", output: Output = OutputFormat.TABLE
) -> None:
    """List trainers, and what each runs."""
    if context.invoked_subcommand is not None:
        return
    with connect(address) as connection:
        found = connection.ask(requests.list_trainers()).trainers
    if output is OutputFormat.JSON:
        for trainer in found:
            print_json(trainer)
        return
    if not found:
        messages().print("no trainer has registered; start one with `python -m trainer_service`")
        return
    _print_trainers(found)
    if any(trainer.running for trainer in found):
        data().print()
        _print_running(found)


@app.command()
def drain(
    trainer: Annotated[str, typer.Argument(metavar="TRAINER")],
    undo: Annotated[bool, typer.Option("--undo", help="Give it work again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it runs nothing.")] = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give a trainer no new work, and move what it runs to others."""
    with connect(address) as connection:
        drained = connection.ask(requests.drain_trainer(trainer, undo=undo))
        while wait and not undo and drained.running:
            time.sleep(LOOK_SECONDS)
            drained = _find(connection, trainer)
    if output is OutputFormat.JSON:
        print_json(drained)
        return
    print(f"{drained.trainer_id} {_state(drained)}")
    if drained.running and not undo:
        messages().print(
            f"  it runs {len(drained.running)}; each moves as soon as a trainer alike has room: "
            "everstep trainers"
        )


def _find(connection: Connection, trainer_id: str) -> Trainer:
    found = connection.ask(requests.list_trainers()).trainers
    return next(trainer for trainer in found if trainer.trainer_id == trainer_id)


def _print_trainers(trainers: Sequence[Trainer]) -> None:
    print_rows(
        ("TRAINER", "STATE", "RUNS", "LABELS", "HEARD", "ADDRESS", "DEVICE", "TORCH", "THREADS"),
        (
            (
                trainer.trainer_id,
                _state(trainer),
                f"{len(trainer.running)}/{trainer.capacity}",
                ",".join(f"{name}={value}" for name, value in sorted(trainer.labels.items())),
                ago(trainer.last_heard_time) if trainer.HasField("last_heard_time") else "",
                trainer.address,
                trainer.environment.device,
                trainer.environment.torch_version,
                str(trainer.environment.threads),
            )
            for trainer in trainers
        ),
    )


def _print_running(trainers: Sequence[Trainer]) -> None:
    print_rows(
        ("TRAINER", "OPERATION", "NAME", "ATTEMPT", "DONE", "EPOCH", "STEP", "SINCE", "MOVES TO"),
        (
            (trainer.trainer_id, *_running(attempt))
            for trainer in trainers
            for attempt in trainer.running
        ),
    )


def _running(attempt: RunningAttempt) -> tuple[str, ...]:
    position = attempt.position
    return (
        attempt.operation_id,
        attempt.display_name,
        str(attempt.attempt),
        f"{position.fraction:.0%}",
        f"{position.epoch}/{position.total_epochs}",
        f"{position.step}/{position.total_steps}",
        ago(attempt.start_time),
        attempt.moving_to,
    )


def _state(trainer: Trainer) -> str:
    if not trainer.alive:
        return "lost"
    return "draining" if trainer.draining else "alive"
