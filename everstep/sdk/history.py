"""A training's epochs, put together from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from everstep.sdk.events import EpochCompleted, Event, TrainingEvent
from everstep.sdk.operations import EpochRecord

if TYPE_CHECKING:
    import pandas


_COLUMNS = [field.name for field in fields(EpochRecord)]


class History:
    """Takes the durable events in order; an epoch that was trained again counts once."""

    def __init__(self) -> None:
        self._records: dict[int, EpochRecord] = {}

    def take(self, event: Event) -> None:
        """Takes one event."""
        # An attempt that begins has no step yet.
        if isinstance(event, TrainingEvent) and event.position.step:
            self._go_back_to(event.position.step)
        if isinstance(event, EpochCompleted):
            self._records[event.epoch] = EpochRecord(
                epoch=event.epoch,
                metrics=event.metrics,
                learning_rate=event.learning_rate,
                is_best=event.is_best,
                seconds=event.seconds,
                step=event.position.step,
                attempt=event.attempt,
                time=event.time,
            )

    def records(self) -> list[EpochRecord]:
        """The epochs, in order."""
        return [self._records[epoch] for epoch in sorted(self._records)]

    def _go_back_to(self, step: int) -> None:
        """What was done after a step is done again, or otherwise."""
        for epoch in [epoch for epoch, record in self._records.items() if record.step > step]:
            del self._records[epoch]


def frame(records: Sequence[EpochRecord]) -> pandas.DataFrame:
    """One row for each epoch, and a column for each metric.

    Raises:
        ImportError: When pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "history_frame() needs pandas; run pip install 'everstep[pandas]', or use history()"
        ) from None
    rows = [
        {
            "epoch": record.epoch,
            **record.metrics,
            "learning_rate": record.learning_rate,
            "is_best": record.is_best,
            "seconds": record.seconds,
            "step": record.step,
            "attempt": record.attempt,
            "time": record.time,
        }
        for record in records
    ]
    columns = None if rows else [name for name in _COLUMNS if name != "metrics"]
    return pandas.DataFrame(rows, columns=columns).set_index("epoch")
