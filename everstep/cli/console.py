"""What all commands share: options, where output goes, how values are written."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everstep.calls.addresses import DEFAULT_ADDRESS, chosen_address
from everstep.calls.connection import Connection
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import LineageEvent, LineageKind

CONFIG_FILES = (Path("everstep.toml"), Path("~/.config/everstep/config.toml"))


class OutputFormat(StrEnum):
    """How data is written to standard output."""

    TABLE = "table"
    JSON = "json"


Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="EVERSTEP_ADDRESS",
        help="host:port of the control plane.",
        show_default=DEFAULT_ADDRESS,
    ),
]
Output = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="table, or json for programs.")
]
OperationName = Annotated[
    str, typer.Argument(metavar="OP", help="An operation: its id, or the beginning of it.")
]


def messages() -> Console:
    """Progress and messages: standard error."""
    return Console(stderr=True, highlight=False)


def data() -> Console:
    """Data: standard output."""
    return Console(highlight=False)


def connect(address: str) -> Connection:
    """To the control plane at the flag's, the environment's or the config file's address.

    Raises:
        EverstepError: INVALID_REQUEST for a config file that cannot be read, or no address.
    """
    return Connection(chosen_address(address, str(_configured().get("address", DEFAULT_ADDRESS))))


def _configured() -> dict[str, Any]:
    for path in CONFIG_FILES:
        found = path.expanduser()
        if found.is_file():
            try:
                return tomllib.loads(found.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise EverstepError(
                    Reason.INVALID_REQUEST, f"{found} cannot be read: {error}"
                ) from None
    return {}


def print_json(value: Any) -> None:
    """One line of JSON; a protobuf message in the names of its .proto file."""
    if isinstance(value, Message):
        value = json_format.MessageToDict(value, preserving_proto_field_name=True)
    try:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; nothing more can be written, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that reads well on a screen and in a pipe."""
    console = data()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    console.width = 1000
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), markup=False, soft_wrap=True)


def size(count: int) -> str:
    """As in `1.4 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """As in `1:02:03` or `0:07`."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def ago(timestamp: Timestamp) -> str:
    """As in `3 min ago`."""
    seconds = (datetime.now(UTC) - timestamp.ToDatetime(tzinfo=UTC)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def described(event: LineageEvent) -> str:
    """An event of a lineage in one line."""
    return f"{words(LineageKind.Name(event.kind), 'LINEAGE_KIND_')}: {event.message}"


def words(name: str, prefix: str) -> str:
    """An enum's name for people: without its prefix, in small letters."""
    return name.removeprefix(prefix).lower().replace("_", " ")
