"""`everstep checkpoints ...`, `pull`, `usage`, `gc`: what is in the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from everstep.calls import requests
from everstep.cli.console import (
    Address,
    OperationName,
    Output,
    OutputFormat,
    ago,
    connect,
    described,
    messages,
    print_json,
    print_rows,
    size,
    words,
)
from everstep.cli.naming import find_operation
from everstep.cli.scrub import verify_all
from everstep.control.v1.checkpoints_pb2 import CheckpointPart
from everstep.downloads import Advance, check_target, download, newest_checkpoint
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint, CheckpointTrigger

app = typer.Typer(no_args_is_help=True)

CheckpointName = Annotated[str, typer.Argument(metavar="CHECKPOINT")]


@app.command("list")
def list_checkpoints(
    operation: Annotated[
        str, typer.Argument(metavar="OP", help="Of one operation; default: all.")
    ] = "",
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """List checkpoints, newest first."""
    with connect(address) as connection:
        name = find_operation(connection, operation).operation_id if operation else ""
        found = list(connection.each(requests.list_checkpoints(name)))
    if output is OutputFormat.JSON:
        for checkpoint in found:
            print_json(checkpoint)
        return
    if not found:
        messages().print("no checkpoints")
        return
    print_rows(
        (
            "CHECKPOINT", "OPERATION", "EPOCH", "STEP", "TRIGGER", "SIZE", "UPLOADED", "MONITOR",
            "LINEAGE", "PINNED", "CREATED",
        ),
        (_row(checkpoint) for checkpoint in found),
    )  # fmt: skip


@app.command()
def show(
    checkpoint: CheckpointName, address: Address = "", output: Output = OutputFormat.TABLE
) -> None:
    """Everything about one checkpoint."""
    with connect(address) as connection:
        found = connection.ask(requests.get_checkpoint(checkpoint))
    if output is OutputFormat.JSON:
        print_json(found)
        return
    rows = [
        ("operation", f"{found.operation_id} (attempt {found.attempt})"),
        ("position", f"epoch {found.epoch}, step {found.step}"),
        ("size", f"{size(found.logical_bytes)}, {size(found.uploaded_bytes)} uploaded"),
        ("metrics", "  ".join(f"{k} {v:.5g}" for k, v in sorted(found.metrics.items()))),
        ("lineage", found.lineage),
        *((f"  step {event.step}", described(event)) for event in found.lineage_events),
        ("manifest", found.reference.manifest_key),
        *((f"{kind} digest", digest) for kind, digest in sorted(found.digests.items())),
    ]
    print_rows(("", found.reference.checkpoint_id), rows)


@app.command()
def pin(
    checkpoint: CheckpointName,
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
    address: Address = "",
) -> None:
    """Keep a checkpoint whatever its retention says."""
    with connect(address) as connection:
        connection.ask(requests.pin_checkpoint(checkpoint, not off))
    print(f"{checkpoint} {'is no longer pinned' if off else 'is pinned'}")


@app.command()
def delete(
    checkpoint: CheckpointName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = "",
) -> None:
    """Delete a checkpoint."""
    if not yes:
        typer.confirm(f"delete {checkpoint}?", abort=True, err=True)
    with connect(address) as connection:
        connection.ask(requests.delete_checkpoint(checkpoint))
    print(f"{checkpoint} deleted")


@app.command()
def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Which one; default: all.")
    ] = "",
    operation: Annotated[
        str, typer.Option("--operation", metavar="OP", help="All of one operation.")
    ] = "",
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Read every blob again and compare its digest. Exit code 1 when something is damaged."""
    if checkpoint and operation:
        raise EverstepError(
            Reason.INVALID_REQUEST, "name a checkpoint or --operation, not both; leave one out"
        )
    with connect(address) as connection:
        if not checkpoint:
            name = find_operation(connection, operation).operation_id if operation else ""
            verify_all(connection.stream(requests.verify_checkpoints(name)), output)
            return
        verified = connection.ask(requests.verify_checkpoint(checkpoint))
    if output is OutputFormat.JSON:
        print_json(verified)
    else:
        print(f"{checkpoint} is whole: {verified.blobs} blobs, {size(verified.bytes)}")


def pull(
    operation: OperationName,
    path: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.safetensors", help="Where to.")
    ] = Path("model.safetensors"),
    best: Annotated[bool, typer.Option("--best", help="The best epoch's weights.")] = False,
    average: Annotated[
        bool, typer.Option("--average", help="The moving average of the weights.")
    ] = False,
    optimizer: Annotated[
        bool, typer.Option("--optimizer", help="The optimizer's state instead of weights.")
    ] = False,
    checkpoint: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="Which one; default: the newest.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    address: Address = "",
) -> None:
    """Download a training's weights as one safetensors file, verified."""
    check_target(path, overwrite=force)
    part = CheckpointPart.CHECKPOINT_PART_WEIGHTS
    if best:
        part = CheckpointPart.CHECKPOINT_PART_BEST_WEIGHTS
    if average:
        part = CheckpointPart.CHECKPOINT_PART_AVERAGE_WEIGHTS
    if optimizer:
        part = CheckpointPart.CHECKPOINT_PART_OPTIMIZER
    with connect(address) as connection:
        name = checkpoint or newest_checkpoint(find_operation(connection, operation))
        chosen = connection.ask(requests.get_checkpoint(name))
        blobs = connection.ask(requests.get_download_urls(name, part)).blobs
        with _download_bar(sum(blob.bytes for blob in blobs)) as advance:
            count = download(blobs, chosen, path, advance)
    print(path)
    messages().print(f"{size(count)} of {name}, step {chosen.step}, verified")


def usage(address: Address = "", output: Output = OutputFormat.TABLE) -> None:
    """What checkpoints take in the store, and what sharing saves."""
    with connect(address) as connection:
        found = connection.ask(requests.get_storage_usage())
    if output is OutputFormat.JSON:
        print_json(found)
        return
    rows = [
        ("checkpoints", str(found.checkpoints)),
        ("their states", size(found.logical_bytes)),
        ("stored", f"{size(found.stored_bytes)} in {found.stored_blobs} blobs"),
        ("saved by sharing", size(found.saved_bytes)),
        (
            "reclaimable",
            f"{size(found.reclaimable_bytes)} in {found.reclaimable_blobs} blobs (everstep gc)",
        ),
        (
            "unfinished uploads",
            f"{size(found.unfinished_bytes)} in {found.unfinished_uploads} (everstep gc)",
        ),
    ]
    if found.damaged_checkpoints:
        rows.append(("damaged", f"{found.damaged_checkpoints} (everstep checkpoints verify)"))
    if found.unregistered_checkpoints:
        rows.append(
            ("not registered", f"{found.unregistered_checkpoints} on their way, or remains")
        )
    if found.unreadable_manifests:
        rows.append(
            ("unreadable", f"{found.unreadable_manifests} manifests: what they need is not known")
        )
    print_rows(("", ""), rows)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    address: Address = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Remove blobs that no checkpoint needs, and what is left of uploads that nobody ended."""
    with connect(address) as connection:
        found = connection.ask(requests.collect_garbage(dry_run=dry_run))
    if output is OutputFormat.JSON:
        print_json(found)
        return
    verb = "would remove" if dry_run else "removed"
    print(
        f"{verb} {found.removed_blobs} blobs ({size(found.removed_bytes)}); "
        f"{found.kept_blobs} are needed, or too young to tell"
    )
    verb = "would abort" if dry_run else "aborted"
    print(f"{verb} {found.aborted_uploads} unfinished uploads ({size(found.aborted_bytes)})")


@contextmanager
def _download_bar(total: int) -> Iterator[Advance]:
    columns = (
        TextColumn("downloading"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=messages(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.update(task, advance=count)


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    value = f"{checkpoint.monitor_value:.5g}" if checkpoint.HasField("monitor_value") else ""
    return (
        checkpoint.reference.checkpoint_id,
        checkpoint.operation_id,
        str(checkpoint.epoch),
        str(checkpoint.step),
        words(CheckpointTrigger.Name(checkpoint.trigger), "CHECKPOINT_TRIGGER_"),
        size(checkpoint.logical_bytes),
        size(checkpoint.uploaded_bytes),
        f"{checkpoint.monitor} {value}" if value else "",
        checkpoint.lineage,
        "yes" if checkpoint.pinned else "",
        ago(checkpoint.create_time),
    )
