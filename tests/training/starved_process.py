"""A training process that has no memory left at a named point.

`python -m tests.training.starved_process DESCRIPTOR POINT`: the product's own process, with a call
that raises MemoryError, or for which the kernel counts one that it killed.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from trainer_service.child import batches, model_trainer
from trainer_service.child.__main__ import main
from trainer_service.child.pipe import ChildPipe, Failed, Train

_receive, _send = ChildPipe.receive, ChildPipe.send


def _starve(*_arguments: Any, **_options: Any) -> Any:
    raise MemoryError


def _hear_only_train(self: ChildPipe) -> Any:
    word, descriptors = _receive(self)
    return (word, descriptors) if isinstance(word, Train) else _starve()


def starve_at(point: str) -> None:
    match point:
        case "hearing":
            ChildPipe.receive = _hear_only_train  # type: ignore[method-assign]
        case "evaluation":
            model_trainer.evaluate = _starve  # type: ignore[attr-defined]
        case "loading":
            # The kernel counts one more each time.
            batches.memory_kills = itertools.count().__next__  # type: ignore[attr-defined]
        case "last word":
            model_trainer.evaluate = _starve  # type: ignore[attr-defined]
            ChildPipe.send = _starve_at_last_word  # type: ignore[method-assign]


def _starve_at_last_word(self: ChildPipe, word: Any) -> None:
    if isinstance(word, Failed):
        _starve()
    _send(self, word)


if __name__ == "__main__":
    starve_at(sys.argv[2])
    sys.exit(main(int(sys.argv[1])))
