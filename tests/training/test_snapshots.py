"""Two slots: one on its way to the store, the other written; and always one to go on from."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from everstep.training.v1.progress_pb2 import TrainingProgress
from tests.training import strategies
from tests.training.processes import StartProcess, digests
from trainer_service.child.pipe import (
    Finished,
    SlotsWanted,
    SnapshotBegun,
    SnapshotHandedOver,
    SnapshotReleased,
    SnapshotTaken,
    TakeCheckpoint,
)
from trainer_service.slots import MemorySlots

STRATEGY = strategies.digits()
STEPS = 12
#: Takes longer than the pause between two snapshots for memory alone.
LONG = strategies.digits(
    training={"epochs": 60}, checkpoint={"every_steps": 0, "every_epochs": 0, "every_seconds": 0}
)


def delayed_steps(events: list[TrainingProgress]) -> list[int]:
    delayed = [event.checkpoint_delayed for event in events if event.HasField("checkpoint_delayed")]
    assert {event.reason for event in delayed} == {"UPLOAD_IN_FLIGHT"}
    return [event.step for event in delayed]


def test_while_one_is_on_its_way_the_newest_waits(
    start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    process = start()
    process.train(STRATEGY)
    first: SnapshotTaken | None = None
    last = None
    for said in process.listen(release=False):
        if isinstance(said, SnapshotTaken) and first is None:
            first = said
            wanted = digests(tmp_path / "first", slots, first.content, STRATEGY)
        last = said
    assert isinstance(last, Finished)
    assert first is not None
    assert (first.step, first.handed_over) == (1, True)
    others = process.snapshots[1:]
    assert [snapshot.step for snapshot in others] == [*range(2, STEPS + 1)]
    assert not any(snapshot.handed_over for snapshot in others)
    assert {snapshot.content.slot for snapshot in others} == {1 - first.content.slot}
    # Each one that fell due and went was said; the final one took the last one's place.
    assert delayed_steps(process.events) == [*range(2, STEPS)]
    reasons = {
        e.checkpoint_delayed.reason for e in process.events if e.HasField("checkpoint_delayed")
    }
    assert reasons == {"UPLOAD_IN_FLIGHT"}
    # What is on its way was left alone.
    assert digests(tmp_path / "after", slots, first.content, STRATEGY) == wanted


def test_what_waits_goes_when_the_way_is_free(start: StartProcess, slots: MemorySlots) -> None:
    process = start()
    process.train(LONG)
    process.say(TakeCheckpoint())
    first = process.until_snapshot(1, release=False)
    process.say(TakeCheckpoint())
    second = process.until_snapshot(1, release=False)
    assert (first.handed_over, second.handed_over) == (True, False)
    process.release(first)
    for said in process.listen(release=False):
        if isinstance(said, SnapshotHandedOver):
            break
    assert said == SnapshotHandedOver(second.content.slot)
    assert slots.newest == second.content


@pytest.mark.parametrize("point", ["in the copy", "between the copy and the flip"])
def test_killed_while_it_writes_over_the_newest(
    point: str, start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    """It goes on from the one on its way, which is the complete one then."""
    whole = start()
    whole.train(STRATEGY)
    assert isinstance(whole.run(), Finished)
    assert slots.newest is not None
    wanted = digests(tmp_path / "whole", slots, slots.newest, STRATEGY)
    for slot in (0, 1):
        slots.begun(slot)

    process = start("tests.training.dying_process", (point, "4"))
    process.train(STRATEGY)
    for _ in process.listen(release=False):
        continue
    assert process.exit_code() == -signal.SIGKILL
    assert any(isinstance(said, SnapshotBegun) for said in process.said[-2:])
    first = process.snapshots[0]
    assert len(process.snapshots) == 3
    assert slots.newest == first.content
    survivor = start()
    survivor.train(STRATEGY, resume=slots.newest, held=(first.content.slot,))
    for said in survivor.listen(release=False):
        if isinstance(said, SnapshotTaken):
            assert said.content.slot != first.content.slot
    assert isinstance(survivor.said[-1], Finished)
    assert digests(tmp_path / "killed", slots, slots.newest, STRATEGY) == wanted


def test_a_checkpoint_that_was_asked_for_keeps_its_claim(start: StartProcess) -> None:
    """A periodic one may take its place, never its trigger."""
    process = start()
    process.train(STRATEGY)
    process.until_snapshot(1, release=False)
    process.say(TakeCheckpoint())
    triggers = []
    for said in process.listen(release=False):
        if isinstance(said, SnapshotTaken):
            triggers.append(said.trigger)
    assert "REQUESTED" in triggers
    since = triggers[triggers.index("REQUESTED") : -1]
    assert set(since) == {"REQUESTED"}
    assert triggers[-1] == "FINAL"


def test_one_that_waited_waits_for_the_next_process_too(
    start: StartProcess, slots: MemorySlots
) -> None:
    process = start()
    process.train(STRATEGY)
    first = process.until_snapshot(1, release=False)
    second = process.until_snapshot(2, release=False)
    process.kill()
    for slot in (0, 1):
        slots.begun(slot)
    slots.completed(first.content)
    slots.completed(second.content)
    other = start()
    other.train(LONG, resume=slots.newest, held=(first.content.slot,), waiting="PERIODIC")
    other.say(SnapshotReleased(first.content.slot))
    heard = [said for said in other.listen() if isinstance(said, SnapshotHandedOver | SlotsWanted)]
    assert SnapshotHandedOver(second.content.slot) in heard


def test_snapshots_for_memory_alone(
    start: StartProcess, slots: MemorySlots, tmp_path: Path
) -> None:
    """Nobody asked for a checkpoint; a killed process still loses next to nothing."""
    process = start()
    process.train(LONG, stall_budget=0.5)
    taken = process.until_snapshot(1)
    process.kill()
    assert (taken.trigger, taken.handed_over) == ("MEMORY", False)
    survivor = start()
    survivor.train(LONG, resume=slots.newest)
    assert isinstance(survivor.run(), Finished)
    assert survivor.restored.step >= taken.step
    assert slots.newest is not None
    resumed = digests(tmp_path / "resumed", slots, slots.newest, LONG)
    whole = start()
    whole.train(LONG)
    assert isinstance(whole.run(), Finished)
    assert [snapshot.trigger for snapshot in whole.snapshots] == ["FINAL"]
    assert digests(tmp_path / "whole", slots, slots.newest, LONG) == resumed


def test_the_slots_are_large_enough_before_the_first_step(start: StartProcess) -> None:
    """With the best weights and the optimizer's state, which are not there yet."""
    process = start()
    process.train(STRATEGY)
    assert isinstance(process.run(), Finished)
    (wanted,) = [said for said in process.said if isinstance(said, SlotsWanted)]
    last = process.snapshots[-1].content.blobs[-1]
    assert wanted.length >= last.offset + last.length > 0.9 * wanted.length
    first = next(n for n, said in enumerate(process.said) if isinstance(said, SnapshotBegun))
    assert process.said.index(wanted) < first
