"""`everstep checkpoints ...`, `pull`, `usage`, `gc`: what is in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from everstep.cli.scrub import verify_all
from everstep.control.v1.checkpoints_pb2 import CheckpointPart
from everstep.downloads import download
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
    with connect(address) as client:
        name = client.find_operation(operation) if operation else ""
        found = list(client.checkpoints(name))
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
    with connect(address) as client:
        found = client.checkpoint(checkpoint)
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
    with connect(address) as client:
        client.pin(checkpoint, not off)
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
    with connect(address) as client:
        client.delete_checkpoint(checkpoint)
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
    with connect(address) as client:
        if not checkpoint:
            name = client.find_operation(operation) if operation else ""
            verify_all(client.verify_all(name), output)
            return
        verified = client.verify(checkpoint)
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
    if path.exists() and not force:
        raise EverstepError(Reason.INVALID_REQUEST, f"{path} is there already; add --force")
    if not path.parent.is_dir():
        raise EverstepError(Reason.INVALID_REQUEST, f"there is no folder {path.parent}")
    part = CheckpointPart.CHECKPOINT_PART_WEIGHTS
    if best:
        part = CheckpointPart.CHECKPOINT_PART_BEST_WEIGHTS
    if average:
        part = CheckpointPart.CHECKPOINT_PART_AVERAGE_WEIGHTS
    if optimizer:
        part = CheckpointPart.CHECKPOINT_PART_OPTIMIZER
    with connect(address) as client:
        found = client.operation(client.find_operation(operation))
        chosen = client.checkpoint(checkpoint) if checkpoint else found.latest_checkpoint
        name = chosen.reference.checkpoint_id
        if not name:
            raise EverstepError(
                Reason.NO_CHECKPOINT, f"{found.operation_id} has no checkpoint to pull yet"
            )
        blobs = client.downloads(name, part)
        metadata = {
            "everstep.operation": found.operation_id,
            "everstep.checkpoint": name,
            "everstep.step": str(chosen.step),
            "everstep.state_digest": chosen.digests["state"],
            "everstep.lineage": chosen.lineage,
        }
        count = download(blobs, path, metadata, messages())
    print(path)
    messages().print(f"{size(count)} of {name}, step {chosen.step}, verified")


def usage(address: Address = "", output: Output = OutputFormat.TABLE) -> None:
    """What checkpoints take in the store, and what sharing saves."""
    with connect(address) as client:
        found = client.usage()
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
    with connect(address) as client:
        found = client.collect_garbage(dry_run=dry_run)
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
