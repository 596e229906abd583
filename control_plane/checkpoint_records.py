"""Checkpoints as the contract shows them, and which of them retention keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from control_plane.database import checkpoints
from control_plane.database.checkpoints import CheckpointRecord
from everstep.errors import EverstepError, Reason
from everstep.training.v1.checkpoint_pb2 import Checkpoint
from everstep.training.v1.strategy_pb2 import CheckpointPolicy

#: A metric whose name ends like this is better when it is smaller; any other, when larger.
MINIMISED: Final = ("loss", "error", "mse", "mae", "rmse")


def checkpoint_message(record: CheckpointRecord) -> Checkpoint:
    """The checkpoint, as it is now."""
    message = Checkpoint.FromString(record.payload)
    message.pinned = record.pinned
    return message


def checkpoint_not_found(checkpoint_id: str, where: str = "") -> EverstepError:
    """CHECKPOINT_NOT_FOUND, in the words that every call uses."""
    return EverstepError(
        Reason.CHECKPOINT_NOT_FOUND,
        f"there is no checkpoint {checkpoint_id}{where}; ListCheckpoints names those that there "
        "are",
        metadata={"checkpoint_id": checkpoint_id},
    )


def known_checkpoint(connection: Connection, checkpoint_id: str) -> CheckpointRecord:
    """The checkpoint's row.

    Raises:
        EverstepError: CHECKPOINT_NOT_FOUND.
    """
    record = checkpoints.find(connection, checkpoint_id)
    if record is None:
        raise checkpoint_not_found(checkpoint_id)
    return record


def minimised(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return metric.lower().endswith(MINIMISED)


def superfluous(
    newest_first: Sequence[CheckpointRecord], policy: CheckpointPolicy, protected: frozenset[str]
) -> list[CheckpointRecord]:
    """What retention removes of an operation's checkpoints.

    Kept are the `keep_last` newest, the `keep_best` best by the monitored metric, pinned ones and
    those in `protected`. Damaged ones neither count nor go: a person decides.
    """
    readable = [record for record in newest_first if not record.damaged]
    last = readable[: max(policy.keep_last, 1)]
    measured = [record for record in readable if record.monitor_value is not None]
    best = sorted(measured, key=_badness)[: policy.keep_best]
    kept = {record.checkpoint_id for record in (*last, *best)} | protected
    return [record for record in readable if record.checkpoint_id not in kept and not record.pinned]


def _badness(record: CheckpointRecord) -> tuple[float, int]:
    """Best first; of equals the newest."""
    assert record.monitor_value is not None
    value = record.monitor_value if minimised(record.monitor) else -record.monitor_value
    return value, -record.sequence
