"""`everstep train`, `watch`, `resume`, `fork`: trainings to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from everstep.calls import requests
from everstep.calls.connection import Connection
from everstep.calls.cursor import FINAL_STATES
from everstep.calls.watch import Watch
from everstep.cli.console import (
    Address,
    OperationName,
    Output,
    OutputFormat,
    connect,
    messages,
    print_json,
    words,
)
from everstep.cli.display import TrainingDisplay
from everstep.cli.interruption import interruptible
from everstep.cli.naming import find_operation
from everstep.control.v1 import operations_pb2
from everstep.control.v1.operations_pb2 import Operation, OperationState
from everstep.downloads import newest_checkpoint
from everstep.errors import EverstepError, Reason
from everstep.strategy import read_strategy
from everstep.training.v1.strategy_pb2 import StrategyOverrides

Priority = Annotated[
    int,
    typer.Option(
        min=-100,
        max=100,
        help="Higher runs first; a point is worth an hour of waiting.",
    ),
]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="KEY=VALUE",
        help="Only on a trainer with this label; may be given several times.",
    ),
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not watch; print the id.")]


def train(
    strategy: Annotated[Path, typer.Argument(metavar="STRATEGY.yaml", help="What to train.")],
    name: Annotated[str, typer.Option(help="Shown in lists; default: the strategy's name.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be given several times.")
    ] = None,
    from_checkpoint: Annotated[
        str,
        typer.Option(metavar="CHECKPOINT", help="Begin with this checkpoint's state: a fork."),
    ] = "",
    priority: Priority = 0,
    on: On = None,
    detach: Detach = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Start a training and watch it. Ctrl-C detaches; the training goes on."""
    parsed = read_strategy(strategy)
    call = requests.create_operation(
        parsed,
        display_name=name,
        labels=_labels(label),
        from_checkpoint=from_checkpoint,
        priority=priority,
        trainer_labels=_labels(on),
    )
    with connect(address) as connection:
        _detached_or_watched(connection, connection.ask(call), 0, detach, output)


def watch(
    operation: OperationName,
    after: Annotated[int, typer.Option(min=0, help="Only what comes after this sequence.")] = 0,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Watch an operation: what has happened, then what happens."""
    with connect(address) as connection:
        follow(connection, find_operation(connection, operation).operation_id, after, output)


def resume(
    operation: OperationName,
    checkpoint: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="Which one; default: the newest.")
    ] = "",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The total number of epochs, to train longer.")
    ] = None,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact",
            help="Even where other bytes may come out; the training is marked for ever after.",
        ),
    ] = False,
    detach: Detach = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Take up a cancelled or failed operation after its last checkpointed step."""
    overrides = None
    if epochs is not None or allow_inexact:
        overrides = StrategyOverrides(epochs=epochs, allow_inexact=allow_inexact)
    with connect(address) as connection:
        found = find_operation(connection, operation)
        call = requests.resume_operation(
            found.operation_id, checkpoint_id=checkpoint, overrides=overrides
        )
        resumed = connection.ask(call)
        _detached_or_watched(connection, resumed, found.last_sequence, detach, output)


def fork(
    operation: OperationName,
    checkpoint: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="Which one; default: the newest.")
    ] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="The total number of epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="The optimizer's, in place of the strategy's.")
    ] = None,
    name: Annotated[str, typer.Option(help="Shown in lists; default: the strategy's name.")] = "",
    priority: Priority = 0,
    on: On = None,
    detach: Detach = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Begin a training of its own with another one's state, and changes.

    For changes that no option names: `everstep train STRATEGY.yaml --from-checkpoint CHECKPOINT`.
    """
    with connect(address) as connection:
        parent = find_operation(connection, operation)
        chosen = checkpoint or newest_checkpoint(parent)
        strategy = parent.strategy
        if epochs is not None:
            strategy.training.epochs = epochs
        if learning_rate is not None:
            strategy.optimizer.args["lr"] = learning_rate
        call = requests.create_operation(
            strategy,
            display_name=name,
            from_checkpoint=chosen,
            priority=priority,
            trainer_labels=_labels(on),
        )
        _detached_or_watched(connection, connection.ask(call), 0, detach, output)


def follow(connection: Connection, operation_id: str, after: int, output: OutputFormat) -> None:
    """Watches to the end; the exit code is 1 when the training failed."""
    console = messages()
    last = after
    plain = output is OutputFormat.JSON or not console.is_terminal
    with TrainingDisplay(console, plain) as display:

        def interrupted(error: EverstepError, failures: int) -> None:
            if failures == 2:
                display.message(
                    f"[yellow]![/] the control plane is away ({escape(error.message)}); the "
                    "training goes on, and so will this when it is back"
                )

        try:
            with interruptible() as check_interrupt:
                for event in Watch(connection, operation_id, after, interrupted):
                    last = max(last, event.sequence)
                    if output is OutputFormat.JSON:
                        print_json(event)
                    else:
                        display.show(event)
                    check_interrupt()
        except KeyboardInterrupt:
            display.message(
                f"detached from {operation_id}; it goes on.\n"
                f"  everstep watch {operation_id} --after {last}\n"
                f"  everstep cancel {operation_id}      (then: everstep resume {operation_id})"
            )
            raise typer.Exit(0) from None
    operation = connection.ask(requests.get_operation(operation_id))
    if output is not OutputFormat.JSON:
        summarise(operation)
    if operation.state == operations_pb2.OPERATION_STATE_FAILED:
        raise typer.Exit(1)


def summarise(operation: Operation) -> None:
    """How a training ended, and what to do next."""
    console = messages()
    state = words(OperationState.Name(operation.state), "OPERATION_STATE_")
    name = operation.operation_id
    if operation.state == operations_pb2.OPERATION_STATE_COMPLETED:
        result = operation.result
        tests = "  ".join(
            f"{metric} [bold]{value:.4f}[/]"
            for metric, value in sorted(result.metrics.items())
            if metric.startswith("test_")
        )
        stopped = f" [dim](stopped early: {escape(result.stop_reason)})[/]"
        console.print(
            f"[bold green]✔[/] {name} completed: {result.epochs} epochs, {result.steps} steps"
            f"{stopped if result.stopped_early else ''}  {tests}",
            soft_wrap=True,
        )
        console.print(
            f"  state {result.digests['state'][:16]}  [dim]everstep pull {name} -o model"
            ".safetensors[/]",
            soft_wrap=True,
        )
    elif operation.state == operations_pb2.OPERATION_STATE_FAILED:
        error = operation.error
        console.print(
            f"[bold red]✘[/] {name} failed: {escape(error.message)} [dim]({error.reason})[/]",
            soft_wrap=True,
        )
        if operation.resumable:
            console.print(f"  [dim]everstep resume {name}[/]")
    elif operation.state in FINAL_STATES:
        console.print(f"[yellow]■[/] {name} {state} at step {operation.position.step}")
        if operation.resumable:
            console.print(f"  [dim]everstep resume {name}[/]")


def _detached_or_watched(
    connection: Connection, operation: Operation, after: int, detach: bool, output: OutputFormat
) -> None:
    name = operation.operation_id
    if detach:
        if output is OutputFormat.JSON:
            print_json(operation)
        else:
            print(name)
        return
    if output is not OutputFormat.JSON:
        messages().print(
            f"[bold]{escape(operation.display_name)}[/] is operation [bold cyan]{name}[/]"
        )
    follow(connection, name, after, output)


def _labels(texts: list[str] | None) -> dict[str, str]:
    return dict(_label(text) for text in texts or [])


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise EverstepError(Reason.INVALID_REQUEST, f"{text!r} is no label; write KEY=VALUE")
    return key, value
