"""Steps run again: the proof that another processor, or other code, computes the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from everstep.errors import EverstepError
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from trainer_service.child.context_digests import context_digests
from trainer_service.child.events import (
    CancellationToken,
    RollbackWanted,
    Stop,
    TrainingStopped,
)
from trainer_service.child.heartbeat import Heartbeat
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.child.trace import StepTrace
from trainer_service.child.training_pipeline import PipelineSettings, TrainingPipeline

#: As many steps are run again, or as lie between the two checkpoints: one tells as much as forty
#: (24 of 24 pairs of environments).
REPLAY_STEPS: Final = 16


def replay_fault(
    strategy: TrainingStrategy,
    settings: PipelineSettings,
    earlier: TrainingResumeContext,
    later: TrainingResumeContext,
    epochs: int | None,
    heartbeat: Heartbeat,
) -> str:
    """Runs the steps after an earlier checkpoint again, and compares each with the later one.

    Every step's number in the trace must be the same; where the later checkpoint is reached, every
    digest of its state.

    Args:
        epochs: The total that a resume asks for; None: the strategy's.
        heartbeat: Told of each step.

    Returns:
        Why it proves nothing; empty when every bit is the same.
    """
    last = min(later.step, earlier.step + REPLAY_STEPS)
    reached: list[tuple[int, dict[str, str], dict[str, Any]]] = []

    def look(_trigger: str, capture: Callable[[], TrainingResumeContext]) -> None:
        context = capture()
        if context.step >= last:
            reached.append((context.step, context_digests(context), dict(context.trace)))
            raise TrainingStopped(Stop.DISCARD)

    every_step = TrainingStrategy()
    every_step.CopyFrom(strategy)
    every_step.checkpoint.every_steps = 1
    pipeline = TrainingPipeline(
        settings, lambda *_: None, CancellationToken(), look, heartbeat=heartbeat
    )
    start = replace(earlier, left_out=later.left_out, applied_overrides=later.applied_overrides)
    asked = {**later.applied_overrides, **({} if epochs is None else {"epochs": epochs})}
    try:
        pipeline.train_strategy(every_step, asked, resume_context=start)
    except TrainingStopped:
        pass
    except (EverstepError, RollbackWanted) as error:
        return f"and steps run again here failed: {error}"
    step, digests, trace = reached[0]
    again, before = StepTrace(), StepTrace()
    again.restore(trace)
    before.restore(later.trace)
    for number in range(earlier.step, step):
        if again.number(number) != before.number(number):
            return f"and step {number + 1}, run again here, gave other bytes"
    if step == later.step and digests != context_digests(later):
        return f"and step {step}, run again here, ended in another state"
    return ""
