"""`everstep export`: an operation's log for TensorBoard or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Lock, Thread
from typing import Annotated, Final

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
from everstep.cli.interruption import interruptible
from everstep.cli.naming import find_operation
from everstep.errors import EverstepError, Reason
from everstep.exporters.following import Export
from everstep.exporters.targets import Target
from everstep.sdk.handle import Handle
from everstep.sdk.operations import Operation

#: One at a time makes the experiment, or a database's tables.
_OPENING: Final = Lock()

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
    found = dict.fromkeys(find_operation(connection, name).operation_id for name in names)
    failures: list[EverstepError] = []
    outcomes: Queue[_Exported | Exception] = Queue()
    for operation_id in found:
        work = (Handle(connection, operation_id), open_target, follow, outcomes)
        if follow:
            # A thread that is left behind at Ctrl-C is a killed export.
            Thread(target=_export_one, args=work, daemon=True).start()
        else:
            _export_one(*work)
    for _ in found:
        with interruptible():
            outcome = outcomes.get()
        if isinstance(outcome, EverstepError):
            failures.append(outcome)
        elif isinstance(outcome, Exception):
            raise outcome
        elif output is OutputFormat.JSON:
            print_json(asdict(outcome))
        else:
            print(outcome.place)
    for failure in failures[1:]:
        messages().print(f"error: {failure.message} ({failure.reason})", markup=False)
    if failures:
        raise failures[0]


@dataclass(frozen=True)
class _Exported:
    operation_id: str
    #: A folder, or the id of a run.
    place: str
    #: The last that is there.
    sequence: int


def _export_one(
    handle: Handle,
    open_target: Callable[[Operation], Target],
    follow: bool,
    outcomes: Queue[_Exported | Exception],
) -> None:
    try:
        with _OPENING:
            opened = open_target(handle.describe())
        with closing(opened) as target:
            export = Export(handle, target, lambda text: messages().print(text, markup=False))
            outcomes.put(_Exported(handle.id, target.place, export.run(follow=follow)))
    except Exception as error:
        outcomes.put(error)


def _not_installed(name: str, extra: str) -> EverstepError:
    return EverstepError(
        Reason.INVALID_REQUEST, f"{name} is not installed; pip install 'everstep[{extra}]'"
    )
