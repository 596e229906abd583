"""Which step metrics are kept: the curve between epochs, in a thousand points or so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from everstep.training.v1.progress_pb2 import TrainingPosition

#: Seconds between two that are kept, at least.
SAMPLE_SECONDS: Final = 1.0
#: Points of a whole training, at most.
SAMPLES: Final = 1000


class StepSamples:
    """Picks the step metrics of one attempt that become durable events.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._time = clock()
        self._step = 0

    def picks(self, position: TrainingPosition) -> bool:
        """Whether this step's metrics are kept."""
        now = self._clock()
        # A training that begins at a checkpoint, or again, is at another step than it was.
        steps = abs(position.step - self._step)
        if now - self._time < SAMPLE_SECONDS or steps < position.total_steps / SAMPLES:
            return False
        self._time, self._step = now, position.step
        return True
