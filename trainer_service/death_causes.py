"""What ended a training process: a signal, an exit code, or want of memory."""

from __future__ import annotations

import signal
from typing import Final

from everstep.errors import Reason
from trainer_service.child.pipe import OUT_OF_MEMORY_EXIT, Failed

OUT_OF_MEMORY: Final = "out of memory"


def death_cause(exit_code: int, memory_kills: int) -> str:
    """How a process ended, as in `signal SIGSEGV`, `exit code 3`, `out of memory`.

    Args:
        exit_code: As subprocess has it: a signal's number is negative.
        memory_kills: How many processes the kernel ended meanwhile for want of memory.
    """
    if exit_code == OUT_OF_MEMORY_EXIT:
        return OUT_OF_MEMORY
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = str(-exit_code)
    if -exit_code == signal.SIGKILL and memory_kills > 0:
        return f"signal {name} ({OUT_OF_MEMORY})"
    return f"signal {name}"


def given_up(deaths: int, cause: str, last: Failed | None) -> Failed:
    """The last word of an attempt whose training process died too often.

    Args:
        deaths: How often.
        cause: Of the last one.
        last: What the last one said, if it did.
    """
    advice = "see the trainer's log, and its memory"
    if OUT_OF_MEMORY in cause:
        advice = "use a larger machine, or fewer trainings at a time"
    return Failed(
        Reason.TRAINING_PROCESS_DIED,
        f"the training process died {deaths} times (last: {cause}); {advice}",
        detail="" if last is None else last.detail,
    )


def hung_again(deaths: int, cause: str, stacks: str) -> Failed:
    """The last word of an attempt whose training process hung too often.

    Args:
        deaths: How often one had to be replaced.
        cause: Of the last one.
        stacks: Of its threads.
    """
    return Failed(
        Reason.TRAINING_HUNG,
        f"the training process hung or died {deaths} times (last: {cause}); the detail says where "
        "it was; a training that is only slow wants a longer EVERSTEP_HUNG_SECONDS",
        detail=stacks,
    )


def never_fitted(cause: str) -> Failed:
    """The last word of an attempt whose data, model and snapshots did not fit into memory."""
    return Failed(
        Reason.OUT_OF_MEMORY,
        f"there is no memory for the training ({cause} before its first step); use a larger "
        "machine, or fewer trainings at a time",
    )
