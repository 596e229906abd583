"""How a state came about, beside training itself: kept in every manifest, for ever after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

FORKED: Final = "FORKED"
#: Went on in an environment where other bytes may come out, for somebody allowed it.
INEXACT: Final = "INEXACT"
#: Went on in another environment, after steps run again there gave the same bytes.
REPLAY_VERIFIED: Final = "REPLAY_VERIFIED"
LEARNING_RATE: Final = "LEARNING_RATE"
ROLLED_BACK: Final = "ROLLED_BACK"
KINDS: Final = frozenset({FORKED, INEXACT, REPLAY_VERIFIED, LEARNING_RATE, ROLLED_BACK})


@dataclass(frozen=True)
class LineageEvent:
    """One thing that happened to a state."""

    kind: str
    #: Optimizer steps done when it did.
    step: int
    #: One line for people.
    message: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "step": self.step, "message": self.message}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LineageEvent:
        """What `to_json` gave.

        Raises:
            ValueError: For anything else.
        """
        if not isinstance(content, Mapping) or content.keys() != {"kind", "step", "message"}:
            raise ValueError("an event of the lineage needs exactly kind, step and message")
        kind, step, message = content["kind"], content["step"], content["message"]
        if kind not in KINDS or type(step) is not int or step < 0 or not isinstance(message, str):
            raise ValueError("no valid event of a lineage")
        return cls(kind, step, message)


def lineage_summary(events: Iterable[LineageEvent]) -> str:
    """`exact`, `exact-replay-verified`, or `inexact from step N`."""
    events = tuple(events)
    inexact = [event.step for event in events if event.kind == INEXACT]
    if inexact:
        return f"inexact from step {min(inexact)}"
    if any(event.kind == REPLAY_VERIFIED for event in events):
        return "exact-replay-verified"
    return "exact"
