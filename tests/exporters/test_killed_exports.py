"""An export that is killed at any instant leaves, once it was said again, what one leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def contents(kind: str, folder: Path) -> list[dict[str, Any]]:
    """The first is of an export that was not killed."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.exporters.killed_exports", kind, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line)["content"] for line in ran.stdout.splitlines()]


#: Three batches: two files and the state's synced and the state moved to its place, each time, and
#: at the begin; or a run made, parameters, curves, texts, the end and the sequence.
@pytest.mark.parametrize(("kind", "moments"), [("tensorboard", 16), ("mlflow", 10)])
def test_killed_at_any_moment(kind: str, moments: int, tmp_path: Path) -> None:
    whole, *others = contents(kind, tmp_path)
    assert len(whole) == (3 if kind == "tensorboard" else 1)
    assert len(others) == moments
    for number, other in enumerate(others):
        assert other == whole, number
