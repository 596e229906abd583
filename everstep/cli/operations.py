"""`everstep ops`, `show`, `cancel`, `checkpoint`, `delete`: operations."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from everstep.calls import requests
from everstep.calls.cursor import FINAL_STATES
from everstep.calls.waiting import ended, take_checkpoint
from everstep.cli.console import (
    Address,
    OperationName,
    Output,
    OutputFormat,
    ago,
    connect,
    data,
    described,
    duration,
    messages,
    print_json,
    print_rows,
    size,
    words,
)
from everstep.cli.naming import find_operation
from everstep.control.v1.operations_pb2 import LivenessState, Operation, OperationState
from everstep.errors import EverstepError, Reason
from everstep.training.v1.progress_pb2 import WorkAtRisk

State = Annotated[
    list[str] | None,
    typer.Option(metavar="STATE", help="pending, running, cancelling, completed, failed, ..."),
]


def ops(
    state: State = None,
    resumable: Annotated[
        bool, typer.Option("--resumable", help="Only those that can be taken up again.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """List operations, newest first."""
    states = [_state(name) for name in state or []]
    with connect(address) as connection:
        pages = requests.list_operations(states, resumable=resumable)
        found = list(islice(connection.each(pages), limit))
    if output is OutputFormat.JSON:
        for operation in found:
            print_json(operation)
        return
    if not found:
        messages().print("no operations; start one with `everstep train STRATEGY.yaml`")
        return
    print_rows(
        (
            "OPERATION",
            "NAME",
            "STATE",
            "PRIORITY",
            "DONE",
            "EPOCH",
            "STEP",
            "ATTEMPTS",
            "CREATED",
        ),
        (
            (
                operation.operation_id,
                operation.display_name,
                _state_shown(operation),
                str(operation.priority),
                f"{operation.position.fraction:.0%}",
                f"{operation.position.epoch}/{operation.position.total_epochs}",
                str(operation.position.step),
                str(len(operation.attempts)),
                ago(operation.create_time),
            )
            for operation in found
        ),
    )


def show(
    operation: OperationName, address: Address = "", output: Output = OutputFormat.TABLE
) -> None:
    """Everything about one operation."""
    with connect(address) as connection:
        found = find_operation(connection, operation)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    console = data()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _facts(found):
        table.add_row(name, escape(value))
    console.print(table)
    if found.attempts:
        console.print()
        print_rows(
            ("ATTEMPT", "TRAINER", "STEPS", "END", "REASON"),
            (
                (
                    str(attempt.number),
                    attempt.trainer_id,
                    f"{attempt.first_step}-{attempt.last_step}",
                    attempt.end.lower().replace("_", " ") or "running",
                    attempt.end_reason,
                )
                for attempt in found.attempts
            ),
        )


def cancel(
    operation: OperationName,
    discard: Annotated[
        bool, typer.Option("--discard", help="Without a checkpoint: what is not saved is lost.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until it has stopped, with its checkpoint.")
    ] = True,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Stop an operation after its current step, with a checkpoint to resume from."""
    with connect(address) as connection:
        name = find_operation(connection, operation).operation_id
        cancelled = connection.ask(requests.cancel_operation(name, discard=discard))
        if wait and cancelled.state not in FINAL_STATES:
            messages().print(f"{name} is stopping; its last step is being saved")
            cancelled = ended(connection, cancelled)
    if output is OutputFormat.JSON:
        print_json(cancelled)
        return
    print(f"{name} {_state_name(cancelled)}")
    if cancelled.resumable:
        step = cancelled.latest_checkpoint.step
        messages().print(f"  saved at step {step}; everstep resume {name}")


def update(
    operation: OperationName,
    priority: Annotated[
        int,
        typer.Option(min=-100, max=100, help="Higher runs first; a point is worth an hour."),
    ],
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Change an operation's place in the queue."""
    with connect(address) as connection:
        name = find_operation(connection, operation).operation_id
        updated = connection.ask(requests.update_operation(name, priority=priority))
    if output is OutputFormat.JSON:
        print_json(updated)
        return
    print(f"{name} has priority {updated.priority}")


def checkpoint(operation: OperationName, address: Address = "") -> None:
    """Take a checkpoint now, after the current step."""
    with connect(address) as connection:
        taken = take_checkpoint(connection, find_operation(connection, operation))
    print(taken.reference.checkpoint_id)


def delete(
    operation: OperationName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = "",
) -> None:
    """Delete a finished operation, its log and its checkpoints."""
    with connect(address) as connection:
        name = find_operation(connection, operation).operation_id
        if not yes:
            typer.confirm(f"delete {name} with all its checkpoints?", abort=True, err=True)
        connection.ask(requests.delete_operation(name))
    print(f"{name} deleted")


def _facts(operation: Operation) -> list[tuple[str, str]]:
    position, saved = operation.position, operation.latest_checkpoint
    facts = [
        ("operation", operation.operation_id),
        ("name", operation.display_name),
        ("state", _state_name(operation)),
        ("waits for", operation.waiting_for),
        ("priority", str(operation.priority)),
        ("only on", ", ".join(f"{k}={v}" for k, v in sorted(operation.trainer_labels.items()))),
        ("trouble", _trouble(operation)),
        ("created", ago(operation.create_time)),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(operation.labels.items()))),
        (
            "position",
            f"epoch {position.epoch}/{position.total_epochs}, step {position.step}/"
            f"{position.total_steps} ({position.fraction:.0%})",
        ),
        ("left", duration(position.eta_seconds) if position.eta_seconds else ""),
        ("metrics", "  ".join(f"{k} {v:.5g}" for k, v in sorted(operation.metrics.items()))),
    ]
    if saved.reference.checkpoint_id:
        facts.append(
            (
                "checkpoint",
                f"{saved.reference.checkpoint_id} at step {saved.step}, "
                f"{size(saved.logical_bytes)}, {ago(saved.create_time)}",
            )
        )
    if operation.HasField("at_risk"):
        facts.append(("at risk", _at_risk(operation.at_risk)))
    if operation.error.reason:
        facts.append(("error", f"{operation.error.message} ({operation.error.reason})"))
        facts += [(f"  {v.field}", v.description) for v in operation.error.violations]
    if saved.lineage:
        facts.append(("lineage", saved.lineage))
        facts += [(f"  step {event.step}", described(event)) for event in saved.lineage_events]
    if operation.result.digests:
        facts.append(("state digest", operation.result.digests["state"]))
    if operation.parent_operation_id:
        facts.append(("forked from", operation.parent_operation_id))
    facts.append(("strategy digest", operation.strategy_digest))
    return [(name, value) for name, value in facts if value]


def _state_shown(operation: Operation) -> str:
    """The state, and what keeps one that runs from being heard."""
    liveness = _liveness_name(operation)
    state = _state_name(operation)
    return f"{state}, {liveness}" if liveness else state


def _trouble(operation: Operation) -> str:
    liveness = _liveness_name(operation)
    if not liveness:
        return ""
    shown = operation.liveness
    return f"{liveness} since {ago(shown.since)}: {shown.message}"


def _liveness_name(operation: Operation) -> str:
    """stalled, unreachable or dead; empty while all is well or nothing runs."""
    state = operation.liveness.state
    if state in (LivenessState.LIVENESS_STATE_UNSPECIFIED, LivenessState.LIVENESS_STATE_HEARD):
        return ""
    return words(LivenessState.Name(state), "LIVENESS_STATE_")


def _at_risk(risk: WorkAtRisk) -> str:
    lag = risk.upload_lag_seconds
    return (
        f"{risk.steps_since_checkpoint} steps, {risk.seconds_since_checkpoint:.0f} s since the "
        f"last checkpoint; {risk.steps_since_snapshot} steps since the last snapshot; "
        + (f"upload {lag:.0f} s behind; " if lag else "")
        + f"waiting {100 * risk.stall_share:.1f} %"
    )


def _state(name: str) -> OperationState.ValueType:
    try:
        return OperationState.Value(f"OPERATION_STATE_{name.upper()}")
    except ValueError:
        known = ", ".join(
            words(state, "OPERATION_STATE_")
            for state, _ in OperationState.items()
            if not state.endswith("UNSPECIFIED")
        )
        raise EverstepError(
            Reason.INVALID_REQUEST, f"there is no state {name!r}; there are {known}"
        ) from None


def _state_name(operation: Operation) -> str:
    return words(OperationState.Name(operation.state), "OPERATION_STATE_")
