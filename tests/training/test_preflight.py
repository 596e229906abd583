"""What is seen before the first step: that the store gives back what it gets, and has room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkpoint_store.blobs import Take
from checkpoint_store.local_blobs import LocalBlobStore
from everstep.errors import EverstepError, Reason
from everstep.training.v1.strategy_pb2 import CheckpointPolicy
from trainer_service import shared_memory
from trainer_service.preflight import SnapshotSize, check_room, try_store
from trainer_service.slots import MemorySlots

MB = 1 << 20
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


def test_restores_side_by_side_count_what_the_others_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of them would fit; the memory of both comes as they are written."""
    available = [10 * MB]
    monkeypatch.setattr(shared_memory, "available_bytes", lambda: available[0])
    slots = MemorySlots()

    def fits(length: int) -> bool:
        """To be written piece by piece, and at once; the same is to be said of both."""
        answers = []
        for ask in (shared_memory.extended, allocated):
            descriptor = os.memfd_create("asked")
            try:
                with ask(descriptor, length):
                    answers.append("")
            except EverstepError as refused:
                answers.append(refused.reason)
            finally:
                os.close(descriptor)
        assert answers in (["", ""], [Reason.OUT_OF_MEMORY] * 2)
        return not any(answers)

    @contextmanager
    def allocated(descriptor: int, length: int) -> Iterator[None]:
        shared_memory.allocate(descriptor, length)
        yield

    with slots.filling(0, 6 * MB) as (_, write):
        assert not fits(6 * MB)
        assert fits(4 * MB)
        with memoryview(bytes(3 * MB)) as half:
            write(0, half)
            available[0] -= 3 * MB
            assert not fits(6 * MB)
            write(3 * MB, half)
            available[0] -= 3 * MB
        assert not fits(6 * MB)
        assert fits(4 * MB)
    available[0] += 6 * MB
    assert fits(6 * MB)
    slots.close()


def test_slots_that_the_machine_has_no_memory_for_are_refused() -> None:
    slots = MemorySlots()
    with pytest.raises(EverstepError) as refused:
        slots.reserve(1 << 50)
    slots.close()
    assert refused.value.reason is Reason.OUT_OF_MEMORY
