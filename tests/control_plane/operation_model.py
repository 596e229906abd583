"""What the contract says of an operation: for each call the state or the reason that must come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from everstep.errors import Reason

PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
CANCELLING: Final = "CANCELLING"
COMPLETED: Final = "COMPLETED"
FAILED: Final = "FAILED"
CANCELLED: Final = "CANCELLED"
OPEN: Final = (RUNNING, CANCELLING)
FINAL: Final = (COMPLETED, FAILED, CANCELLED)
STATES: Final = (PENDING, *OPEN, *FINAL)

#: The contract's "States": each change there is, with the reason that the log gives for it.
LEGAL_CHANGES: Final = {
    "CREATED": {("UNSPECIFIED", PENDING)},
    "DISPATCHED": {(PENDING, RUNNING)},
    "REFUSED": {(RUNNING, PENDING)},
    "ATTEMPT_LOST": {(RUNNING, PENDING)},
    "HANDED_OVER": {(RUNNING, PENDING)},
    "CHECKPOINT_SKIPPED": {(RUNNING, PENDING)},
    "CANCEL_REQUESTED": {(RUNNING, CANCELLING)},
    "CANCELLED_IN_QUEUE": {(PENDING, CANCELLED)},
    "CANCELLED": {(RUNNING, CANCELLED), (CANCELLING, CANCELLED)},
    "COMPLETED": {(RUNNING, COMPLETED), (CANCELLING, COMPLETED)},
    "FAILED": {(RUNNING, FAILED), (CANCELLING, FAILED)},
    "RESUMED": {(FAILED, PENDING), (CANCELLED, PENDING)},
    "EXTENDED": {(COMPLETED, PENDING)},
}
#: Attempts that may be lost in a row.
MAX_ATTEMPTS: Final = 2


@dataclass
class CheckpointModel:
    """One committed checkpoint."""

    checkpoint_id: str
    step: int
    pinned: bool = False
    damaged: bool = False

    @property
    def epoch(self) -> int:
        return self.step // 10


@dataclass
class OperationModel:
    """One operation, as its callers and its trainer have made it."""

    name: str
    operation_id: str
    epochs: int
    state: str = PENDING
    deleted: bool = False
    #: How each attempt ended; empty while it runs.
    ends: list[str] = field(default_factory=list)
    checkpoints: list[CheckpointModel] = field(default_factory=list)
    #: Those that were deleted.
    gone: list[str] = field(default_factory=list)
    #: The reason of the first error since the last resume.
    error: str = ""
    losses: int = 0
    #: Of its newest checkpoint.
    last_step: int = 0
    #: Queued by a resume, and not yet dispatched since.
    resumed: bool = False
    #: Where the last resume begins, until it has a checkpoint of its own; and whether it was named.
    resume_from: CheckpointModel | None = None
    resume_named: bool = False
    #: Of the open attempt: what it began with, and whether it has said how far it is.
    began_with: CheckpointModel | None = None
    has_spoken: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def attempt(self) -> int:
        return len(self.ends)

    @property
    def newest(self) -> CheckpointModel | None:
        """The newest that can be read."""
        return next((one for one in reversed(self.checkpoints) if not one.damaged), None)

    @property
    def resumable(self) -> bool:
        """A resume without a word more is taken."""
        return self.state in (FAILED, CANCELLED) and self.newest is not None

    def next_step(self) -> int:
        """Where the next checkpoint is taken: never twice at one step."""
        self.last_step += 10
        return self.last_step

    # What callers ask: the reason to refuse it, or None; then what it changes.

    def refuses_cancel(self) -> Reason | None:
        if self.deleted:
            return Reason.OPERATION_NOT_FOUND
        return Reason.ALREADY_FINISHED if self.state in (COMPLETED, FAILED) else None

    def cancel(self) -> None:
        self.state = {PENDING: CANCELLED, RUNNING: CANCELLING}.get(self.state, self.state)
        self.resumed = False

    def refuses_resume(self, checkpoint_id: str, epochs: int | None) -> Reason | None:
        if self.deleted:
            return Reason.OPERATION_NOT_FOUND
        if self.state == PENDING and self.resumed:
            return Reason.RESUME_CONFLICT
        if self.state not in FINAL:
            return Reason.ALREADY_RUNNING
        if self.state == COMPLETED and (epochs is None or epochs <= self.epochs):
            return Reason.ALREADY_COMPLETED
        return self._refuses_checkpoint(checkpoint_id, epochs)

    def _refuses_checkpoint(self, checkpoint_id: str, epochs: int | None) -> Reason | None:
        checkpoint = self._named(checkpoint_id) if checkpoint_id else self.newest
        if checkpoint is None:
            if checkpoint_id:
                return Reason.CHECKPOINT_NOT_FOUND
            return Reason.CHECKPOINT_CORRUPT if self.checkpoints else Reason.NO_CHECKPOINT
        if checkpoint.damaged:
            return Reason.CHECKPOINT_CORRUPT
        too_few = epochs is not None and epochs < checkpoint.epoch
        return Reason.INVALID_REQUEST if too_few else None

    def resume(self, checkpoint_id: str, epochs: int | None) -> None:
        self.state, self.resumed, self.losses, self.error = PENDING, True, 0, ""
        self.epochs = epochs or self.epochs
        self.resume_from = self._named(checkpoint_id) if checkpoint_id else self.newest
        self.resume_named = bool(checkpoint_id)

    def refuses_delete(self) -> Reason | None:
        if self.deleted:
            return Reason.OPERATION_NOT_FOUND
        return None if self.state in FINAL else Reason.NOT_FINISHED

    def delete(self) -> None:
        self.deleted = True
        self.gone += [one.checkpoint_id for one in self.checkpoints]
        self.checkpoints.clear()

    def refuses_checkpoint_now(self) -> Reason | None:
        if self.deleted:
            return Reason.OPERATION_NOT_FOUND
        return None if self.state in OPEN else Reason.NOT_RUNNING

    def refuses_deleting(self, checkpoint: CheckpointModel) -> Reason | None:
        """Whether a checkpoint of it may go."""
        if checkpoint.pinned:
            return Reason.CHECKPOINT_PINNED
        needed: list[CheckpointModel | None] = []
        if self.state not in FINAL:
            needed = [self.newest, self.resume_from]
        if self.state in OPEN:
            needed.append(self.began_with)
        return Reason.CHECKPOINT_IN_USE if checkpoint in needed else None

    def delete_checkpoint(self, checkpoint: CheckpointModel) -> None:
        self.checkpoints.remove(checkpoint)
        self.gone.append(checkpoint.checkpoint_id)

    # What the dispatcher and the trainer do.

    def dispatch(self, ends: list[str]) -> None:
        """Attempts that were begun: all but the last one were refused."""
        self.ends += ends
        self.state, self.resumed, self.has_spoken = RUNNING, False, False
        self.began_with = self.resume_from or self.newest

    def commit(self, checkpoint_id: str, step: int) -> None:
        self.has_spoken = True
        self.checkpoints.append(CheckpointModel(checkpoint_id, step))
        self.losses, self.resume_from, self.resume_named = 0, None, False

    def complete(self) -> None:
        self._end("COMPLETED", COMPLETED)
        self.losses = 0

    def fail(self, reason: Reason) -> None:
        self._end("FAILED", FAILED, reason)

    def acknowledge(self) -> None:
        self._end("CANCELLED", CANCELLED)

    def lose(self) -> None:
        """The attempt is lost, without fault of the training."""
        if self.state == CANCELLING:
            self._end("LOST", CANCELLED)
            return
        self.losses += 1
        if self.losses >= MAX_ATTEMPTS:
            self._end("LOST", FAILED, Reason.ATTEMPTS_EXHAUSTED)
        else:
            self._end("LOST", PENDING)

    def hand_over(self) -> None:
        self._end("HANDED_OVER", CANCELLED if self.state == CANCELLING else PENDING)

    def find_unreadable(self) -> None:
        """The checkpoint that the attempt began with cannot be read."""
        damaged = self.began_with
        assert damaged is not None
        damaged.damaged = True
        if self.state == CANCELLING:
            self._end("CANCELLED", CANCELLED)
        elif self.newest is None or (self.resume_named and self.resume_from is damaged):
            self._end("FAILED", FAILED, Reason.CHECKPOINT_CORRUPT)
        else:
            self._end("FAILED", PENDING)
            self.resume_from, self.resume_named = None, False

    def _end(self, end: str, state: str, error: Reason | None = None) -> None:
        self.ends[-1], self.state, self.began_with = end, state, None
        if error is not None:
            self.error = error.value

    def _named(self, checkpoint_id: str) -> CheckpointModel | None:
        return next((one for one in self.checkpoints if one.checkpoint_id == checkpoint_id), None)
