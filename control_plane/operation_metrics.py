"""The metrics that an operation shows: the newest of each name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checkpoint_store.digests import canonical_json, parse_canonical_json
from everstep.training.v1.progress_pb2 import TrainingProgress


def merged_metrics(stored: str, newer: Mapping[str, float]) -> str:
    """Metrics as the database keeps them, with newer ones in place of older."""
    return canonical_json({**parse_canonical_json(stored.encode()), **newer}).decode()


def newest_metrics(words: Sequence[TrainingProgress]) -> dict[str, float]:
    """The newest of each name that events show."""
    newest: dict[str, float] = {}
    for word in words:
        if word.HasField("epoch_completed"):
            newest |= word.epoch_completed.metrics
            newest["learning_rate"] = word.epoch_completed.learning_rate
        else:
            newest |= step_metrics(word)
    return newest


def step_metrics(word: TrainingProgress) -> dict[str, float]:
    """What a word shows of a step; nothing where it is about something else."""
    if not word.HasField("step_metrics"):
        return {}
    step = word.step_metrics
    shown = {
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "examples_per_second": step.examples_per_second,
    }
    if step.HasField("gradient_norm"):
        shown["gradient_norm"] = step.gradient_norm
    return shown
