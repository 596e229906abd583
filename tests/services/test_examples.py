"""The Python examples of README and how-to run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from tests.services.processes import PATIENCE_SECONDS, ServiceProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(
    make_control_plane: Callable[..., ServiceProcess], make_trainer: Callable[..., ServiceProcess]
) -> str:
    control_plane = make_control_plane().start()
    make_trainer(EVERSTEP_CONTROL_PLANE=control_plane.address).start()
    return control_plane.address


def run_examples(document: str, written: str, address: str, folder: Path) -> str:
    """Runs a document's examples, one program, with the real address in the written one's place."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    program = "\n".join(examples)
    assert written in program
    (folder / "strategies").symlink_to(ROOT / "strategies")
    result = subprocess.run(
        [sys.executable, "-c", program.replace(written, address)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_readme_s_example_follows_a_training_to_its_end(address: str, tmp_path: Path) -> None:
    printed = run_examples("README.md", "127.0.0.1:7070", address, tmp_path)
    *epochs, accuracy = printed.splitlines()
    assert [int(line.split()[1]) for line in epochs] == list(range(len(epochs)))
    assert float(accuracy) > 0.9


def test_the_page_on_python_is_one_program(address: str, tmp_path: Path) -> None:
    printed = run_examples("docs/how-to/from-python.md", "127.0.0.1:7070", address, tmp_path)
    assert " is completed\n" in printed
    assert "saved at step " in printed
    assert "epochs: unknown key" in printed
    assert "it can be resumed from ck-" in printed
    assert len(printed.splitlines()[-1].split(", ")) == 2
    assert safetensors.torch.load_file(tmp_path / "digits.safetensors")


def test_the_stubs_follow_a_training_to_its_end(address: str, tmp_path: Path) -> None:
    printed = run_examples("docs/how-to/generated-stubs.md", "127.0.0.1:7070", address, tmp_path)
    numbered = [line.split() for line in printed.splitlines() if not line.startswith("0 ")]
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    assert numbered[-1][1] == "state_changed"


def test_the_how_to_s_example_needs_no_control_plane(
    make_trainer: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    trainer = make_trainer().start()
    printed = run_examples(
        "docs/how-to/trainer-alone.md", "127.0.0.1:7071", trainer.address, tmp_path
    )
    assert printed.splitlines()[-1].split()[1] == "completed"
