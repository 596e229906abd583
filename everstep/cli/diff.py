"""`everstep diff`: are two trainings the same, and where do they part?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from everstep.cli.console import (
    Address,
    Output,
    OutputFormat,
    connect,
    messages,
    print_json,
    print_rows,
)
from everstep.cli.naming import find_operation
from everstep.comparison import Comparison, compare

_TENSORS_NAMED = 8


def diff(
    first: Annotated[str, typer.Argument(metavar="OP")],
    second: Annotated[str, typer.Argument(metavar="OP")],
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Do two operations hold the same bytes? Where do they part? Exit code 0 when the same, else 1.

    Compared are their newest checkpoints, so a training that still runs can be compared, too.
    """
    with connect(address) as connection:
        left, right = (find_operation(connection, name) for name in (first, second))
        found = compare(connection, left, right)
    if output is OutputFormat.JSON:
        _print_json(found)
    else:
        _print_table(found)
    if found.difference is not None:
        raise typer.Exit(1)


def _print_json(found: Comparison) -> None:
    difference = found.difference
    print_json(
        {
            "same": difference is None,
            "kinds": dict(found.same),
            "first_different_step": None if difference is None else difference.step,
            "compared_step": None if difference is None else difference.compared_step,
            "tensors": [] if difference is None else list(difference.tensors),
            "causes": [] if difference is None else list(difference.causes),
        }
    )


def _print_table(found: Comparison) -> None:
    print_rows(
        ("", found.left.operation_id, found.right.operation_id, ""),
        (
            ("step", str(found.left.step), str(found.right.step), ""),
            ("lineage", found.left.lineage, found.right.lineage, ""),
            *(
                (
                    kind,
                    found.left.digests[kind][:16],
                    found.right.digests[kind][:16],
                    "same" if same else "DIFFERENT",
                )
                for kind, same in found.same.items()
            ),
        ),
    )
    if found.difference is not None:
        for line in _described(found):
            messages().print(line, soft_wrap=True)


def _described(found: Comparison) -> list[str]:
    """Where two trainings part, in lines for people."""
    difference = found.difference
    assert difference is not None
    common = min(found.left.step, found.right.step)
    if difference.step is not None:
        lines = [f"they part at step [bold]{difference.step}[/]"]
    elif found.left.step != found.right.step:
        lines = [f"no step differs up to step {common}: one is further than the other"]
    else:
        lines = ["every step was the same: they part after the last one, or in what is beside it"]
    if difference.tensors:
        named = ", ".join(difference.tensors[:_TENSORS_NAMED])
        more = len(difference.tensors) - _TENSORS_NAMED
        rest = f" and {more} more" if more > 0 else ""
        lines.append(f"first tensors, at step {difference.compared_step}: {escape(named)}{rest}")
    elif difference.step is not None:
        lines.append(f"[dim]no step after {difference.step} has a checkpoint of both[/]")
    lines += [f"  {escape(cause)}" for cause in difference.causes]
    return lines
