"""The commands put together, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.markup import escape
from typer.exceptions import TyperException
from typer.main import get_command

from everstep.cli import checkpoints, demo, diff, doctor, export, operations, stack, train, trainers
from everstep.cli.console import messages
from everstep.errors import EverstepError, Reason

#: Exit codes; see docs/reference/command-line.md.
FAILED, USAGE, NOT_THERE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

_CODE_OF_STATUS = {
    "INVALID_ARGUMENT": USAGE,
    "OUT_OF_RANGE": USAGE,
    "NOT_FOUND": NOT_THERE,
    "FAILED_PRECONDITION": NOT_THERE,
    "ABORTED": NOT_THERE,
    "UNAVAILABLE": UNREACHABLE,
    "DEADLINE_EXCEEDED": UNREACHABLE,
}

app = typer.Typer(
    help="Training that never loses a step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(train.train)
app.command()(train.watch)
app.command()(operations.ops)
app.command()(operations.show)
app.command()(operations.update)
app.command()(operations.cancel)
app.command()(train.resume)
app.command()(train.fork)
app.command()(operations.checkpoint)
app.command()(operations.delete)
app.command()(diff.diff)
app.add_typer(checkpoints.app, name="checkpoints", help="Checkpoints: list, show, pin, ...")
app.command()(checkpoints.pull)
app.command()(checkpoints.usage)
app.command()(checkpoints.gc)
app.add_typer(export.app, name="export", help="The log, for TensorBoard or MLflow.")
app.add_typer(trainers.app, name="trainers", help="Trainers: who runs what; drain.")
app.command()(stack.up)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command(hidden=True)(doctor.healthy)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        code = get_command(app).main(list(arguments), "everstep", standalone_mode=False)
    except EverstepError as error:
        show_error(error)
        return (
            FAILED if error.reason is Reason.INTERNAL else _CODE_OF_STATUS.get(error.status, FAILED)
        )
    except TyperException as error:
        # Where a command was to be named, the help stands there already, and the message is empty.
        if text := error.format_message():
            messages().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
        return USAGE
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def show_error(error: EverstepError) -> None:
    """One line, and one for each field that was refused."""
    console = messages()
    text = error.message
    if len(error.violations) > 1:
        text = text.partition(": ")[0]
    console.print(f"[bold red]error:[/] {escape(text)} [dim]({error.reason})[/]", soft_wrap=True)
    if len(error.violations) > 1:
        for violation in error.violations:
            console.print(
                f"  [yellow]{escape(violation.field)}[/]: {escape(violation.description)}",
                soft_wrap=True,
            )
