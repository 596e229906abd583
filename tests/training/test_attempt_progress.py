"""An attempt's events, as those see them who follow: durable all, transient the newest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from everstep.training.v1.progress_pb2 import (
    Phase,
    PhaseProgress,
    StepMetrics,
    TrainingPosition,
    TrainingProgress,
    Warning,
)
from trainer_service import progress
from trainer_service.journal import Journal
from trainer_service.progress import AttemptProgress


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    opened.open_attempt("op-1", 1)
    yield opened
    opened.close()


@pytest.fixture
def attempt(journal: Journal) -> AttemptProgress:
    return AttemptProgress(journal, "op-1", 1)


def warning(text: str) -> TrainingProgress:
    return TrainingProgress(warning=Warning(reason="TEST", message=text))


def step(number: int) -> TrainingProgress:
    return TrainingProgress(
        position=TrainingPosition(step=number, total_steps=100, fraction=number / 100),
        step_metrics=StepMetrics(loss=number),
    )


def moved(done: int) -> TrainingProgress:
    return TrainingProgress(
        phase_progress=PhaseProgress(phase=Phase.PHASE_FINISHING, done_bytes=done, total_bytes=9)
    )


async def take(events: AsyncIterator[bytes], count: int) -> list[TrainingProgress]:
    async with asyncio.timeout(30):
        return [TrainingProgress.FromString(await anext(events)) for _ in range(count)]


async def test_of_transient_events_a_slow_reader_sees_the_newest_of_each_kind(
    attempt: AttemptProgress,
) -> None:
    await attempt.publish(warning("begun"))
    async with aclosing(attempt.follow(0)) as events:
        assert (await take(events, 1))[0].index == 1
        for number in range(1, 6):
            attempt.show(step(number))
            attempt.show(moved(number))
        attempt.show(step(6))
        seen = await take(events, 2)
    assert [event.index for event in seen] == [0, 0]
    assert seen[0].phase_progress.done_bytes == 5
    assert seen[1].step_metrics.loss == 6


async def test_what_was_shown_before_a_durable_event_is_not_shown_after_it(
    attempt: AttemptProgress,
) -> None:
    await attempt.publish(warning("begun"))
    async with aclosing(attempt.follow(0)) as events:
        await take(events, 1)
        attempt.show(step(1))
        await attempt.publish(warning("later"))
        attempt.show(moved(1))
        seen = await take(events, 2)
    assert seen[0].index == 2
    assert seen[1].HasField("phase_progress")


async def test_the_journal_is_read_at_the_readers_pace(
    attempt: AttemptProgress, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither many events nor large ones are held in memory for one who does not read."""
    monkeypatch.setattr(progress, "PAGE_BYTES", 1000)
    pages: list[int] = []
    read = journal.read

    def counting(*args: object) -> list[tuple[int, bytes]]:
        page = read(*args)  # type: ignore[arg-type]
        pages.append(sum(len(payload) for _, payload in page))
        assert len(page) == 1 or pages[-1] <= 1000
        return page

    monkeypatch.setattr(journal, "read", counting)
    for number in range(20):
        await attempt.publish(warning("x" * (3000 if number == 7 else 200)))
    async with aclosing(attempt.follow(0)) as events:
        await take(events, 1)
        assert len(pages) == 1
        rest = await take(events, 19)
    assert [event.index for event in rest] == list(range(2, 21))


async def test_what_is_there_together_comes_in_one_message_where_that_is_asked_for(
    attempt: AttemptProgress,
) -> None:
    many = progress.PAGE_EVENTS + 10
    for number in range(many):
        await attempt.publish(warning(f"{number}"))
    async with aclosing(attempt.follow(0)) as events:
        singly = await take(events, many)
    async with aclosing(attempt.follow(0, batches=True)) as events:
        messages = await take(events, 2)
        attempt.show(step(1))
        await attempt.publish(warning("later"))
        later = (await take(events, 1))[0]
    assert [len(message.next) for message in messages] == [progress.PAGE_EVENTS - 1, 9]
    joined = [event for message in messages for event in (message, *message.next)]
    for event in joined:
        event.ClearField("next")
    assert joined == singly
    assert (later.index, len(later.next)) == (many + 1, 0)


async def test_the_fraction_never_goes_back_and_an_eta_ends_with_its_process(
    attempt: AttemptProgress,
) -> None:
    ahead = step(60)
    ahead.position.eta_seconds = 5.0
    await attempt.publish(ahead)
    await attempt.publish(TrainingProgress(training_restarted={"from_step": 50}))
    await attempt.publish(step(51))
    async with aclosing(attempt.follow(0)) as events:
        seen = await take(events, 3)
    assert [event.position.fraction for event in seen] == [0.6, 0.6, 0.6]
    assert [event.position.HasField("eta_seconds") for event in seen] == [True, False, False]
    assert seen[2].position.step == 51
