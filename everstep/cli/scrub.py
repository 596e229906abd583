"""All checkpoints verified, as it goes on: for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from everstep.cli.console import OutputFormat, messages, print_json, size
from everstep.control.v1.checkpoints_pb2 import VerifyCheckpointsResponse

Show: TypeAlias = Callable[[VerifyCheckpointsResponse], None]

#: Between two lines where nobody sees a bar.
LINE_SECONDS: Final = 10.0


def verify_all(responses: Iterable[VerifyCheckpointsResponse], output: OutputFormat) -> None:
    """Shows a verification to its end; exit code 1 when something is damaged."""
    console = messages()
    word = VerifyCheckpointsResponse()
    with _bar(console) if console.is_terminal else _lines(console) as show:
        for word in responses:
            show(word)
            if not word.HasField("verified"):
                continue
            verified = word.verified
            if output is OutputFormat.JSON:
                print_json(verified)
            elif verified.damaged:
                print(f"{verified.checkpoint_id} of {verified.operation_id}: {verified.message}")
    console.print(
        f"{word.done_checkpoints} checkpoints, {size(word.bytes)} in {word.blobs} blobs read: "
        f"{word.damaged_checkpoints or 'none'} damaged",
        soft_wrap=True,
    )
    if word.damaged_checkpoints:
        raise typer.Exit(1)


@contextmanager
def _bar(console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("verifying"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("checkpoints, {task.description} read"),
    )
    # Standard output is data, and is not for the bar's console to write.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=None)
        yield lambda word: progress.update(
            task,
            total=word.total_checkpoints,
            completed=word.done_checkpoints,
            description=size(word.bytes),
        )


@contextmanager
def _lines(console: Console) -> Iterator[Show]:
    due = time.monotonic() + LINE_SECONDS

    def show(word: VerifyCheckpointsResponse) -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + LINE_SECONDS
        console.print(
            f"{word.done_checkpoints} of {word.total_checkpoints} checkpoints, "
            f"{size(word.bytes)} read",
            soft_wrap=True,
        )

    yield show
