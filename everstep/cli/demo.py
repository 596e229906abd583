"""`everstep demo`: a training is killed twice and ends in the same bytes as one that was not."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from everstep.calls.connection import Connection
from everstep.calls.requests import create_operation, get_operation
from everstep.calls.watch import Watch
from everstep.cli.console import data, duration, messages, print_rows
from everstep.cli.display import TrainingDisplay
from everstep.control.v1.operations_pb2 import (
    OPERATION_STATE_COMPLETED,
    Operation,
    OperationEvent,
)
from everstep.errors import EverstepError, Reason
from everstep.local_stack import LocalStack, StackPorts
from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy

#: A CNN with BatchNorm and dropout on 1,797 handwritten digits: state of every kind to get wrong.
STRATEGY: Final[dict[str, Any]] = {
    "name": "demo-digits-cnn",
    "seed": 7,
    "data": {"source": "builtin:digits", "target": "label"},
    "model": {"factory": "cnn", "args": {"channels": [32, 64], "dropout": 0.2}},
    "loss": "cross_entropy",
    "optimizer": {"name": "AdamW", "args": {"lr": 0.002}},
    "scheduler": {"name": "CosineAnnealingLR", "args": {"T_max": 8}},
    "training": {
        "epochs": 8,
        "batch_size": 4,
        "gradient_clip": 1.0,
        "early_stopping": {"monitor": "val_loss", "patience": 4},
    },
    "checkpoint": {"every_steps": 150, "every_epochs": 1},
}
#: The training process is killed in this epoch, the trainer in that one; from 0.
CHILD_DIES_IN, TRAINER_DIES_IN = 1, 4
#: Set to see the comparison fail: the digest of the killed training is then changed.
BREAK_VARIABLE: Final = "EVERSTEP_DEMO_BREAK"

Wanted = Callable[[OperationEvent], bool]


def demo(
    keep: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep all state in this folder.")
    ] = None,
) -> None:
    """Kill a training process, then its trainer; see that the training ends in the same bytes.

    The exit code is 1 when it does not.
    """
    console = messages()
    with tempfile.TemporaryDirectory(prefix="everstep-demo-") as temporary:
        stack = LocalStack(
            keep or Path(temporary),
            StackPorts(0, 0, 0, 0),
            Path(temporary),
            lambda text: console.print(f"[yellow]![/] {text}", highlight=False),
        )
        console.print("starting object store, control plane and trainer ...")
        with stack.running(), Connection(stack.address) as connection:
            print_rows(
                ("SERVICE", "ADDRESS", "PROCESS"),
                ((name, address, str(pid)) for name, address, pid, _ in stack.rows()),
            )
            console.print(f"objects are in {stack.store_described}", soft_wrap=True)
            console.print(f"watch it in a browser: {stack.dashboard_url}", soft_wrap=True)
            same = _killed_and_compared(console, stack, connection)
    if not same:
        raise typer.Exit(1)


def _killed_and_compared(console: Console, stack: LocalStack, connection: Connection) -> bool:
    strategy = parse_strategy(STRATEGY)
    console.print("\n[bold]1. A training, killed twice[/]")
    killed_began = time.monotonic()
    killed = _Watched(console, connection, strategy)
    killed.until(_in_mid_epoch(CHILD_DIES_IN))
    pid = connection.ask(get_operation(killed.name)).attempts[-1].process_id
    killed.say(f"[bold red]⚡ SIGKILL to the training process ({pid}), in mid-epoch[/]")
    os.kill(pid, signal.SIGKILL)
    killed.until(lambda event: event.progress.HasField("training_restarted"))
    killed.until(_in_mid_epoch(TRAINER_DIES_IN))
    killed.say(f"[bold red]⚡ SIGKILL to the trainer ({stack.trainer.pid}), in mid-epoch[/]")
    stack.trainer.kill()
    stack.keep_running()
    first = killed.result()
    killed_seconds = time.monotonic() - killed_began

    console.print("\n[bold]2. The same strategy, left alone[/]")
    alone_began = time.monotonic()
    alone = _Watched(console, connection, strategy)
    second = alone.result()
    alone_seconds = time.monotonic() - alone_began
    return _compare(
        console, first, second, f"{duration(killed_seconds)} and {duration(alone_seconds)}"
    )


class _Watched:
    """One operation on its way, shown to the person at the terminal."""

    def __init__(
        self, console: Console, connection: Connection, strategy: TrainingStrategy
    ) -> None:
        self.name = connection.ask(create_operation(strategy)).operation_id
        self._console = console
        self._connection = connection
        self._after = 0

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def until(self, wanted: Wanted) -> None:
        """Shows events up to one that is wanted.

        Raises:
            EverstepError: TRAINING_FAILED when the operation ends before.
        """
        if not self._show(wanted):
            raise self._unexpected(self._connection.ask(get_operation(self.name)))

    def result(self) -> Operation:
        """Shows the rest, and returns how it ended."""
        self._show(lambda _event: False)
        operation = self._connection.ask(get_operation(self.name))
        if operation.state != OPERATION_STATE_COMPLETED:
            raise self._unexpected(operation)
        return operation

    def _show(self, wanted: Wanted) -> bool:
        with TrainingDisplay(self._console, not self._console.is_terminal) as display:
            for event in Watch(self._connection, self.name, self._after):
                self._after = max(self._after, event.sequence)
                display.show(event)
                if wanted(event):
                    return True
        return False

    def _unexpected(self, operation: Operation) -> EverstepError:
        said = operation.error.message or "it ended sooner than it could be killed"
        return EverstepError(Reason.TRAINING_FAILED, f"the demo's training {self.name}: {said}")


def _in_mid_epoch(epoch: int) -> Wanted:
    def wanted(event: OperationEvent) -> bool:
        position = event.progress.position
        return (
            event.progress.HasField("step_metrics")
            and position.epoch >= epoch
            and 0 < position.batch < position.batches_per_epoch
        )

    return wanted


def _compare(console: Console, killed: Operation, alone: Operation, seconds: str) -> bool:
    """Prints both runs' digests and says whether they are the same."""
    digests = dict(killed.result.digests)
    if os.environ.get(BREAK_VARIABLE):
        digests["weights"] = digests["weights"][::-1]
    other = dict(alone.result.digests)
    kinds = sorted({*digests, *other}, key=lambda kind: (kind == "state", kind))
    same = digests == other and killed.result.metrics == alone.result.metrics
    console.print("\n[bold]3. Both, side by side[/]")
    print_rows(
        (
            "BLAKE3 OF",
            f"KILLED TWICE ({killed.operation_id})",
            f"LEFT ALONE ({alone.operation_id})",
            "",
        ),
        (
            (
                kind,
                digests.get(kind, "-")[:24],
                other.get(kind, "-")[:24],
                "same" if digests.get(kind) == other.get(kind) else "DIFFERENT",
            )
            for kind in kinds
        ),
    )
    accuracy = " and ".join(f"{run.result.metrics['test_accuracy']:.4f}" for run in (killed, alone))
    console.print(
        f"test accuracy {accuracy}; {seconds} minutes; attempts {len(killed.attempts)} and 1"
    )
    if same:
        data().print("[bold green]✔ byte for byte the same: nothing was lost[/]")
    else:
        data().print("[bold red]✘ the two trainings did not end in the same bytes[/]")
    return same
