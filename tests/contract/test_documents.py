"""The reference says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from control_plane.settings import ControlPlaneSettings
from everstep.cli.application import app
from everstep.errors import STATUS_OF_REASON, Reason
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


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "README.md"])
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for piece in text.split("](")[1:]:
        target = piece.partition(")")[0].partition("#")[0]
        if target and "://" not in target:
            assert (path.parent / target).exists(), target
