"""SnapshotHandover: which snapshots an attempt has, and which of them go to the store."""

from __future__ import annotations

from collections.abc import Callable

from trainer_service.child.pipe import (
    MEMORY,
    SnapshotBegun,
    SnapshotHandedOver,
    SnapshotTaken,
)
from trainer_service.slots import MemorySlots
from trainer_service.work_at_risk import RiskMeter


class SnapshotHandover:
    """Follows what training processes say of their snapshots.

    One that is to become a checkpoint is handed over when its process says so, and its slot is
    left alone until it is released; the newest waits where another one is on its way.

    Args:
        slots: Where the snapshots stand.
        risk: Told of each that is complete.
    """

    def __init__(self, slots: MemorySlots, risk: RiskMeter) -> None:
        self._slots = slots
        self._risk = risk
        self._taker: Callable[[SnapshotTaken], None] = lambda _snapshot: None
        #: What this attempt took, by slot, as far as it is complete.
        self._taken: dict[int, SnapshotTaken] = {}
        #: Slots on their way to the store.
        self._held: set[int] = set()
        #: The newest snapshot, where it is to become a checkpoint and another is on its way.
        self._waiting: SnapshotTaken | None = None
        #: Whether a checkpoint was asked for and is not on its way yet.
        self._requested = False

    def begin(self, taker: Callable[[SnapshotTaken], None]) -> None:
        """Says who is called with each snapshot that is handed over."""
        self._taker = taker

    @property
    def newest(self) -> SnapshotTaken | None:
        """The newest complete snapshot that this attempt took."""
        newest = self._slots.newest
        return None if newest is None else self._taken.get(newest.slot)

    @property
    def is_waiting(self) -> bool:
        """Whether a snapshot waits for the one before it to be stored, or given up."""
        return self._waiting is not None

    @property
    def waiting_trigger(self) -> str:
        """Why the snapshot that waits was taken; empty where none waits."""
        return "" if self._waiting is None else self._waiting.trigger

    @property
    def held(self) -> tuple[int, ...]:
        """Slots on their way to the store, in order."""
        return tuple(sorted(self._held))

    @property
    def request_is_open(self) -> bool:
        """Whether a checkpoint was asked for of which there is no snapshot yet."""
        return self._requested and self.waiting_trigger != "REQUESTED"

    def request(self) -> None:
        """A checkpoint is asked for."""
        self._requested = True

    def release(self, slot: int) -> None:
        """A snapshot's slot is read no more."""
        self._held.discard(slot)

    def note(self, said: SnapshotBegun | SnapshotTaken | SnapshotHandedOver) -> None:
        """What a training process says."""
        match said:
            case SnapshotBegun(slot):
                self._slots.begun(slot)
                self._taken.pop(slot, None)
                self._waiting = None
            case SnapshotTaken():
                self._slots.completed(said.content)
                self._risk.snapshot_taken(said)
                self._taken[said.content.slot] = said
                self._waiting = None if said.trigger == MEMORY else said
                if said.handed_over:
                    self.hand_over_waiting()
            case SnapshotHandedOver():
                self.hand_over_waiting()

    def hand_over_waiting(self) -> None:
        """Gives the snapshot that waits, if one does, to the taker."""
        snapshot, self._waiting = self._waiting, None
        if snapshot is None:
            return
        if snapshot.trigger == "REQUESTED":
            self._requested = False
        self._held.add(snapshot.content.slot)
        self._taker(snapshot)
