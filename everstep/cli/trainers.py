"""`everstep trainers ...`: who can train."""

from __future__ import annotations

from typing import Annotated

import typer

from everstep.calls import requests
from everstep.cli.console import (
    Address,
    Output,
    OutputFormat,
    connect,
    messages,
    print_json,
    print_rows,
)
from everstep.control.v1.trainers_pb2 import Trainer

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
    print_rows(
        ("TRAINER", "STATE", "RUNS", "ADDRESS", "TORCH", "THREADS", "OPERATIONS"),
        (
            (
                trainer.trainer_id,
                _state(trainer),
                f"{len(trainer.operation_ids)}/{trainer.capacity}",
                trainer.address,
                trainer.environment.torch_version,
                str(trainer.environment.threads),
                " ".join(trainer.operation_ids),
            )
            for trainer in found
        ),
    )


@app.command()
def drain(
    trainer: Annotated[str, typer.Argument(metavar="TRAINER")],
    undo: Annotated[bool, typer.Option("--undo", help="Give it work again.")] = False,
    address: Address = "",
) -> None:
    """Give a trainer no new work."""
    with connect(address) as connection:
        drained = connection.ask(requests.drain_trainer(trainer, undo=undo))
    print(f"{drained.trainer_id} {_state(drained)}")


def _state(trainer: Trainer) -> str:
    if not trainer.alive:
        return "gone"
    return "draining" if trainer.draining else "alive"
