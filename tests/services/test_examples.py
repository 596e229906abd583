"""The Python examples of README and how-to run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.services.processes import PATIENCE_SECONDS, ServiceProcess

ROOT = Path(__file__).parents[2]


def run_example(document: str, written: str, address: str) -> str:
    """Runs a document's example that names an address, with the real address in its place."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    example = next(text for text in examples if written in text)
    result = subprocess.run(
        [sys.executable, "-c", example.replace(written, address)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_s_example_follows_a_training_to_its_end(
    make_control_plane: Callable[..., ServiceProcess], make_trainer: Callable[..., ServiceProcess]
) -> None:
    control_plane = make_control_plane().start()
    make_trainer(EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    printed = run_example("README.md", "127.0.0.1:7070", control_plane.address)
    numbered = [line.split() for line in printed.splitlines() if not line.startswith("0 ")]
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    assert numbered[-1][1] == "state_changed"


def test_the_how_to_s_example_needs_no_control_plane(
    make_trainer: Callable[..., ServiceProcess],
) -> None:
    trainer = make_trainer().start()
    printed = run_example("docs/how-to/trainer-alone.md", "127.0.0.1:7071", trainer.address)
    assert printed.splitlines()[-1].split()[1] == "completed"
