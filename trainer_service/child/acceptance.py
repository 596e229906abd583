"""Whether a training may go on here, and what its lineage says of it from now on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from checkpoint_store.lineage import FORKED, INEXACT, LEARNING_RATE, REPLAY_VERIFIED, LineageEvent
from everstep.errors import EverstepError, Reason
from trainer_service.child.fingerprint import differences, listed, mismatch
from trainer_service.child.pipe import Train
from trainer_service.child.resume_context import TrainingResumeContext
from trainer_service.provenance import PROVABLE


def accept_environment(
    train: Train,
    here: Mapping[str, str],
    context: TrainingResumeContext,
    replay: Callable[[], str],
) -> list[LineageEvent]:
    """What is added to the lineage when a checkpoint is gone on from in this environment.

    A fork begins a training of its own, so its environment is only noted. Everything else must
    be as it was, but for what steps that are run again can prove to make no difference.

    Args:
        train: What was asked for.
        here: This process's fingerprint.
        context: The state of the checkpoint.
        replay: Runs steps again; says why that proves nothing, or an empty text when it does.

    Raises:
        EverstepError: ENVIRONMENT_MISMATCH, with the differences.
    """
    if not train.fingerprint:
        return []
    found = differences(train.fingerprint, here)
    if train.forked_from:
        also = f"; in another environment: {listed(found)}" if found else ""
        return [LineageEvent(FORKED, context.step, f"{train.origin}{also}")]
    if not found:
        return []
    why = "where other bytes come out"
    if found.keys() <= PROVABLE:
        why = replay()
        if not why:
            return [LineageEvent(REPLAY_VERIFIED, context.step, listed(found))]
    if not train.overrides.get("allow_inexact", False):
        raise mismatch(found, why)
    return [LineageEvent(INEXACT, context.step, listed(found))]


def accept_data(train: Train, source: str, digest: str, step: int) -> list[LineageEvent]:
    """As `accept_environment`, for the data.

    Raises:
        EverstepError: ENVIRONMENT_MISMATCH.
    """
    if not train.data_digest or train.data_digest == digest or train.forked_from:
        return []
    change = f"data: {train.data_digest[:12]} -> {digest[:12]}"
    if train.overrides.get("allow_inexact", False):
        return [LineageEvent(INEXACT, step, change)]
    raise EverstepError(
        Reason.ENVIRONMENT_MISMATCH,
        f"the data in {source} is not what the checkpoint was made with; restore that data, start "
        "a new training or fork this one",
        metadata={"data": change},
    )


def accept_overrides(train: Train, context: TrainingResumeContext) -> list[LineageEvent]:
    """A learning rate that is asked for makes another training of it: it is never silent."""
    rate = train.overrides.get("learning_rate")
    if rate is None or context.applied_overrides.get("learning_rate") == rate:
        return []
    event = LineageEvent(LEARNING_RATE, context.step, f"learning rate set to {rate:g}")
    return [] if event.to_json() in train.lineage else [event]
