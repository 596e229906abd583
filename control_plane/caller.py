"""Who asked for what threads do; they stop when nobody waits for it any more."""

from __future__ import annotations

from dataclasses import dataclass

from everstep.errors import EverstepError, Reason


@dataclass
class Caller:
    """The caller of one call; set in the event loop, seen in the threads that work for it."""

    gone: bool = False

    def check(self) -> None:
        """To be called between any two things that take time.

        Raises:
            EverstepError: CALL_CANCELLED, when the caller has gone.
        """
        if self.gone:
            raise EverstepError(Reason.CALL_CANCELLED, "the caller has gone; call again")
