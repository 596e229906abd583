"""From an operation's log to a target: what is there, then what happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

import tenacity

from everstep.errors import EverstepError, HistoryCompacted, Reason, ServiceUnavailable
from everstep.exporters.entries import Entry, entry_of
from everstep.exporters.targets import Target
from everstep.sdk.handle import Handle

#: Entries written at once while the log is behind its end.
_AT_A_TIME: Final = 500

#: Called with a line for people.
Told = Callable[[str], None]


class Export:
    """Brings one operation's log into a target.

    Args:
        operation: Whose log it is.
        target: Goes on after its sequence.
        told: Hears of what is not in the log any more, and of a target that does not answer.
    """

    def __init__(self, operation: Handle, target: Target, told: Told) -> None:
        self._operation = operation
        self._target = target
        self._told = told
        self._first_steps: dict[int, int] = {}

    def run(self, *, follow: bool) -> int:
        """Exports what is in the log; with `follow`, to the operation's end.

        Returns:
            The last sequence that is in the target.

        Raises:
            EverstepError: OPERATION_NOT_FOUND; FUTURE_SEQUENCE when the target has more than the
                log; what the target raises, but one that does not answer is waited for while
                following.
        """
        last = self._operation.describe().last_sequence
        after = self._target.sequence
        while follow or after != last:
            try:
                self._run_after(after, last, follow=follow)
                break
            except HistoryCompacted as compacted:
                after = max(self._target.sequence, compacted.first_sequence - 1)
                self._told(
                    f"{self._operation.id}: events {self._target.sequence + 1} to {after} are not "
                    "in the log any more; they are left out"
                )
        return self._target.sequence

    def _run_after(self, after: int, last: int, *, follow: bool) -> None:
        waiting: list[Entry] = []
        with closing(self._operation.events(after, transient=False)) as events:
            try:
                for event in events:
                    waiting.append(entry_of(event, self._first_step))
                    if event.sequence >= last or len(waiting) == _AT_A_TIME:
                        self._write(waiting, patient=follow)
                        waiting = []
                    if event.sequence >= last and not follow:
                        return
            except HistoryCompacted:
                # What came before the gap is not to be asked for again.
                if waiting:
                    self._write(waiting, patient=follow)
                raise

    def _write(self, entries: Sequence[Entry], *, patient: bool) -> None:
        if not patient:
            self._target.write(entries)
            return
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ServiceUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=1, max=30),
            before_sleep=self._say_once,
            reraise=True,
        ):
            with attempt:
                self._target.write(entries)

    def _say_once(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            self._told(f"{state.outcome.exception()}; waiting for it")

    def _first_step(self, attempt: int) -> int:
        """The step that an attempt began with."""
        if attempt not in self._first_steps:
            attempts = self._operation.describe().attempts
            self._first_steps = {each.number: each.first_step for each in attempts}
        if attempt not in self._first_steps:
            raise EverstepError(
                Reason.INTERNAL, f"{self._operation.id} has no attempt {attempt} that its log names"
            )
        return self._first_steps[attempt]
