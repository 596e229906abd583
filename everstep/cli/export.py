"""`everstep export`: an operation's log for TensorBoard or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from everstep.calls.connection import Connection
from everstep.cli.console import (
    Address,
    Output,
    OutputFormat,
    connect,
    messages,
    print_json,
)
from everstep.cli.naming import find_operation
from everstep.errors import EverstepError, Reason
from everstep.exporters.following import Export
from everstep.exporters.targets import Target
from everstep.sdk.handle import Handle
from everstep.sdk.operations import Operation

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Operations = Annotated[
    list[str], typer.Argument(metavar="OP...", help="Operations: ids, or beginnings of them.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Until each operation has ended.")]


@app.command()
def tensorboard(
    operations: Operations,
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="TensorBoard's log directory; made if need be.")
    ],
    follow: Follow = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Write TensorBoard event files. Said again, it goes on where it was."""
    try:
        from everstep.exporters.tensorboard_run import TensorBoardRun
    except ImportError:
        raise _not_installed("TensorBoard", "tensorboard") from None

    with connect(address) as connection:
        _export(
            connection, operations, lambda operation: TensorBoardRun(to, operation), follow, output
        )


@app.command()
def mlflow(
    operations: Operations,
    tracking_uri: Annotated[
        str,
        typer.Option(
            metavar="URI",
            envvar="MLFLOW_TRACKING_URI",
            help="As in http://HOST:PORT, sqlite:///...",
        ),
    ],
    experiment: Annotated[
        str, typer.Option(metavar="NAME", envvar="MLFLOW_EXPERIMENT_NAME", help="MLflow's.")
    ] = "everstep",
    follow: Follow = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Write runs of an MLflow experiment. Said again, it goes on where it was."""
    try:
        from everstep.exporters.mlflow_run import MlflowRun
    except ImportError:
        raise _not_installed("MLflow", "mlflow") from None

    with connect(address) as connection:
        _export(
            connection,
            operations,
            lambda operation: MlflowRun(tracking_uri, experiment, operation),
            follow,
            output,
        )


def _export(
    connection: Connection,
    names: Sequence[str],
    open_target: Callable[[Operation], Target],
    follow: bool,
    output: OutputFormat,
) -> None:
    """Each operation on its own: one that cannot be exported keeps no other from it."""
    handles = {
        found: Handle(connection, found)
        for found in (find_operation(connection, name).operation_id for name in names)
    }
    failures: list[EverstepError] = []
    with ThreadPoolExecutor(len(handles) if follow else 1) as threads:
        running = [
            threads.submit(_export_one, handle, open_target, follow) for handle in handles.values()
        ]
        for finished in as_completed(running):
            try:
                operation_id, place, sequence = finished.result()
            except EverstepError as error:
                failures.append(error)
                continue
            if output is OutputFormat.JSON:
                print_json({"operation_id": operation_id, "place": place, "sequence": sequence})
            else:
                print(place)
    for failure in failures[1:]:
        messages().print(f"error: {failure.message} ({failure.reason})", markup=False)
    if failures:
        raise failures[0]


def _export_one(
    handle: Handle, open_target: Callable[[Operation], Target], follow: bool
) -> tuple[str, str, int]:
    """The operation, where it is, and the last sequence there."""
    with closing(open_target(handle.describe())) as target:
        export = Export(handle, target, lambda text: messages().print(text, markup=False))
        return handle.id, target.place, export.run(follow=follow)


def _not_installed(name: str, extra: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST, f"{name} is not installed; pip install 'everstep[{extra}]'"
    )
