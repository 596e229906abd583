"""The example client in TypeScript: generated from the protos, type-checked, run."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control_plane.conftest import StartTrainer
from tests.control_plane.scripted_trainer import PATIENCE_SECONDS
from tests.services.processes import ServiceProcess

ROOT = Path(__file__).parents[2]
EXAMPLE = Path("docs/examples/typescript")
#: What npm says when its registry cannot be reached or gives nothing out.
UNREACHABLE = (
    "ECONNREFUSED",
    "ECONNRESET",
    "EAI_AGAIN",
    "ENETUNREACH",
    "ENOTFOUND",
    "ETIMEDOUT",
    "ERR_SOCKET_TIMEOUT",
    "E403",
    "E502",
    "E503",
    "E504",
)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example's folder, built from the protos that are here."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path / "repository" / EXAMPLE
    built = shutil.ignore_patterns("node_modules", "generated", "dist")
    shutil.copytree(ROOT / EXAMPLE, folder, ignore=built)
    shutil.copytree(ROOT / "protos", tmp_path / "repository" / "protos")
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    brief = ("--fetch-retries=0", "--fetch-timeout=20000")
    installed = subprocess.run(
        ["npm", "ci", *quiet, *brief], cwd=folder, capture_output=True, text=True
    )
    if installed.returncode and any(word in installed.stderr for word in UNREACHABLE):
        pytest.skip(f"npm's registry is out of reach: {installed.stderr.strip().splitlines()[0]}")
    assert installed.returncode == 0, installed.stderr
    compiled = subprocess.run(["npm", "run", "build"], cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    return folder


def test_its_packages_are_pinned_and_name_no_registry() -> None:
    package = json.loads((ROOT / EXAMPLE / "package.json").read_text())
    for version in (package["dependencies"] | package["devDependencies"]).values():
        assert version[0].isdigit(), version
    locked = json.loads((ROOT / EXAMPLE / "package-lock.json").read_text())["packages"]
    assert not [name for name, entry in locked.items() if "resolved" in entry]
    assert all("integrity" in entry for name, entry in locked.items() if name)


async def _lines(process: Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    while line := await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS):
        yield line.decode().strip()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_it_misses_nothing_when_the_control_plane_is_killed(
    example: Path, control_plane: ServiceProcess, start_trainer: StartTrainer
) -> None:
    trainer = await start_trainer()
    process = await asyncio.create_subprocess_exec(
        "node", "dist/src/main.js", control_plane.address, cwd=example, stdout=PIPE, stderr=PIPE
    )
    try:
        lines = _lines(process)
        first = await anext(lines)
        training = await trainer.begun(first.removeprefix("operation "))
        training.epoch(0, val_loss=0.5)
        seen = []
        async for line in lines:
            seen.append(line)
            if "epoch 1 " in line:
                await asyncio.to_thread(control_plane.kill)
                training.epoch(1, val_loss=0.25)
                await asyncio.to_thread(control_plane.start)
            if "epoch 2 " in line:
                training.complete()
        assert process.stderr is not None
        assert await process.wait() == 0, (await process.stderr.read()).decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert [int(line.split()[0]) for line in seen] == list(range(1, len(seen) + 1))
    assert [line.partition(" ")[2] for line in seen][2:] == [
        'epoch 1 {"val_loss":0.5}',
        'epoch 2 {"val_loss":0.25}',
        "completed",
        "OPERATION_STATE_COMPLETED",
    ]
