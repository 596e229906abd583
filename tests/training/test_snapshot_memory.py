"""Slots are mapped with all their pages: the first snapshot costs what the later ones do."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator

import pytest
import torch

from trainer_service.child import page_table
from trainer_service.child.snapshot_memory import SnapshotMemory

STATE_BYTES = 160 << 20


@pytest.fixture
def slots() -> Iterator[tuple[int, ...]]:
    descriptors = tuple(os.memfd_create(f"slot-{slot}") for slot in (0, 1))
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def faults(memory: SnapshotMemory, slot: int, state: torch.Tensor) -> int:
    """Pages that a snapshot had to wait for."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory.write(slot, [("weights", {"w": state})])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("refused", [False, True], ids=["populated", "refused by the kernel"])
def test_a_first_snapshot_waits_for_no_page(
    slots: tuple[int, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:
        monkeypatch.setattr(page_table, "_MADV_POPULATE_WRITE", 12345)
    state = torch.ones(STATE_BYTES // 4)
    memory = SnapshotMemory(slots)
    memory.map(STATE_BYTES + (1 << 20))
    for slot in (0, 1):
        assert faults(memory, slot, state) < STATE_BYTES // mmap.PAGESIZE // 20


def test_pages_keep_what_is_in_them(slots: tuple[int, ...]) -> None:
    """A new process maps a slot that the newest snapshot stands in."""
    length = (64 << 20) + 5
    os.ftruncate(slots[0], length)
    os.pwrite(slots[0], b"first", 0)
    os.pwrite(slots[0], b"last", length - 4)
    with mmap.mmap(slots[0], length) as mapping:
        page_table.populate(mapping, 2)
        assert (mapping[:5], mapping[-4:]) == (b"first", b"last")
    assert os.fstat(slots[0]).st_blocks * 512 >= length


def test_what_the_kernel_refuses_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_table, "_MADV_POPULATE_WRITE", 12345)
    with mmap.mmap(-1, mmap.PAGESIZE) as mapping, pytest.raises(OSError, match="Invalid"):
        page_table.populate(mapping, 2)
