"""Transient events: of each kind the newest, for whoever watches."""

from __future__ import annotations

from control_plane.watch_responses import batch_response
from everstep.control.v1.operations_pb2 import OperationEvent
from everstep.training.v1.progress_pb2 import TrainingProgress


class Transients:
    """The newest step metrics, the newest progress of a phase, ... of one operation."""

    def __init__(self) -> None:
        #: Of the newest.
        self.number = 0
        #: Number and bytes, by kind.
        self._newest: dict[str, tuple[int, bytes]] = {}
        #: What those get who have seen the same.
        self._responses: dict[int, bytes | None] = {}

    def show(self, operation_id: str, number: int, word: TrainingProgress) -> None:
        """Takes the place of the one before it of the same kind; its number is higher."""
        self.number = number
        self._responses.clear()
        entry = OperationEvent(operation_id=operation_id, time=word.time, progress=word)
        self._newest[word.WhichOneof("event") or ""] = (number, entry.SerializeToString())

    def clear(self) -> None:
        """Something durable came: what was shown before must not be shown after it."""
        self._newest.clear()
        self._responses.clear()

    def response(self, shown: int) -> bytes | None:
        """Those with a higher number than `shown`, in order; None when there are none."""
        if shown not in self._responses:
            newer = sorted(item for item in self._newest.values() if item[0] > shown)
            entries = [entry for _, entry in newer]
            self._responses[shown] = batch_response(entries) if entries else None
        return self._responses[shown]
