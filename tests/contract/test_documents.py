"""The reference says what the code does."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import everstep.sdk
from control_plane.settings import ControlPlaneSettings
from everstep.cli.application import app
from everstep.errors import CLASS_OF_REASON, STATUS_OF_REASON, Reason
from trainer_service.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
#: Without what npm brings to the examples.
DOCUMENTS = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "node_modules" not in path.parts]


def test_every_reason_has_a_status_and_a_line() -> None:
    text = (REFERENCE / "errors.md").read_text()
    for reason in Reason:
        assert f"| `{reason.value}` | {STATUS_OF_REASON[reason]} |" in text


def test_every_setting_has_a_line() -> None:
    text = (REFERENCE / "settings.md").read_text()
    for settings in (ControlPlaneSettings, TrainerSettings):
        for name in settings.model_fields:
            assert f"`EVERSTEP_{name.upper()}`" in text


def test_every_command_has_a_line() -> None:
    text = (REFERENCE / "command-line.md").read_text()
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        if not command.hidden:
            assert f"`{name}" in text, name


def test_the_sdk_s_names_and_methods_have_their_place() -> None:
    text = (REFERENCE / "sdk.md").read_text()
    for name in everstep.sdk.__all__:
        assert f"`{name}" in text, name
    for face in (everstep.Client, everstep.Handle):
        for name in vars(face):
            if not name.startswith("_"):
                assert f"`{name}(" in text, name
    for reason, kind in CLASS_OF_REASON.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{kind.__name__}` |")]
        assert f"`{reason}`" in line


def test_both_faces_of_the_sdk_have_the_same_methods() -> None:
    pairs = [
        (everstep.Client, everstep.AsyncClient),
        (everstep.Handle, everstep.AsyncHandle),
    ]
    for blocking, asynchronous in pairs:
        names = [name for name in vars(blocking) if not name.startswith("_")]
        assert names == [name for name in vars(asynchronous) if not name.startswith("_")]
        for name in names:
            parameters = dict(inspect.signature(getattr(blocking, name)).parameters)
            # asyncio.timeout stands around a coroutine instead.
            parameters.pop("timeout", None)
            assert parameters == inspect.signature(getattr(asynchronous, name)).parameters, name


def test_the_page_on_python_is_typed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "from-python.md").read_text()
    program = tmp_path / "program.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)))
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "README.md"])
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for piece in text.split("](")[1:]:
        target = piece.partition(")")[0].partition("#")[0]
        if target and "://" not in target:
            assert (path.parent / target).exists(), target
