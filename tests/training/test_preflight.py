"""What is seen before the first step: that the store gives back what it gets, and has room."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_store.blobs import LocalBlobStore, Take
from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import CheckpointPolicy
from trainer_service.preflight import SnapshotSize, check_room, try_store
from trainer_service.slots import MemorySlots

POLICY = CheckpointPolicy(keep_last=3, keep_best=1)


class SmallStore(LocalBlobStore):
    """A folder on a disk of which ten thousand bytes are free."""

    def free_bytes(self) -> int | None:
        return 10_000


class ForgetfulStore(LocalBlobStore):
    """A folder that gives back other bytes than it was given."""

    def read_range(self, key: str, take: Take, offset: int, size: int, length: int) -> None:
        def flip(position: int, piece: memoryview) -> None:
            piece[-1] ^= 1
            take(position, piece)

        super().read_range(key, flip, offset, size, length)


def test_nothing_is_left_of_the_small_checkpoint(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    store.set_up()
    try_store(store, "op-1", 1)
    assert list(store.list("blobs/")) == []
    assert list(store.list("operations/")) == []


def test_a_store_that_gives_back_other_bytes_is_refused(tmp_path: Path) -> None:
    store = ForgetfulStore(tmp_path)
    store.set_up()
    with pytest.raises(EverstepError) as refused:
        try_store(store, "op-1", 1)
    assert refused.value.reason is Reason.CHECKPOINT_CORRUPT
    assert list(store.list("operations/")) == []


@pytest.mark.parametrize(
    ("total", "changing", "resumed", "fits"),
    [
        (2_000, 2_000, False, True),
        (2_001, 2_001, False, False),
        (6_000, 1_000, False, True),
        (9_000, 9_000, True, True),
        (10_001, 10_001, True, False),
    ],
)
def test_there_is_room_for_what_is_kept(
    total: int, changing: int, resumed: bool, fits: bool, tmp_path: Path
) -> None:
    """Four that are kept and one on its way; frozen weights count once."""
    store = SmallStore(tmp_path)
    if fits:
        check_room(store, POLICY, SnapshotSize(total, changing), resumed)
        return
    with pytest.raises(EverstepError, match="keep_last") as refused:
        check_room(store, POLICY, SnapshotSize(total, changing), resumed)
    assert refused.value.reason is Reason.STORE_FULL


def test_slots_that_the_machine_has_no_memory_for_are_refused() -> None:
    slots = MemorySlots()
    with pytest.raises(EverstepError) as refused:
        slots.reserve(1 << 50)
    slots.close()
    assert refused.value.reason is Reason.OUT_OF_MEMORY
