"""Where entries go: what a target promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from everstep.exporters.entries import Entry


class Target(Protocol):
    """One operation's place in TensorBoard or MLflow.

    However an export ends, killed at any instant or not, the next one goes on after `sequence` and
    leaves the same as one that was never broken off.
    """

    @property
    def place(self) -> str:
        """Where people find it: a folder, the id of a run."""

    @property
    def sequence(self) -> int:
        """The last entry that is there; 0 when there is none."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Adds entries that follow each other; they are there for good when this returns."""

    def close(self) -> None:
        """Lets go of files and connections."""
