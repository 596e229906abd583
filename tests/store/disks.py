"""A store folder whose disk comes and goes."""

from __future__ import annotations

from pathlib import Path


class Disk:
    """What is mounted at a folder, which is empty without it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder.with_name(f"{folder.name}-disk")

    def take_away(self) -> None:
        self._folder.rename(self._aside)
        self._folder.mkdir()

    def bring_back(self) -> None:
        self._folder.rmdir()
        self._aside.rename(self._folder)

    def names(self) -> list[str]:
        """What stands in the folder now."""
        return sorted(path.name for path in self._folder.iterdir())
