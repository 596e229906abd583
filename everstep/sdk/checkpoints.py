"""Checkpoints and the store that holds them, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

#: What can be downloaded of a checkpoint; each comes as one safetensors file.
CheckpointPart: TypeAlias = Literal[
    "weights", "best_weights", "average_weights", "optimizer", "trace"
]


class CheckpointTrigger(StrEnum):
    """Why a checkpoint was taken."""

    PERIODIC = "periodic"
    REQUESTED = "requested"
    CANCELLATION = "cancellation"
    #: An error in the training; the state is that of the last whole step.
    FAILURE = "failure"
    #: The trainer was told to stop.
    SHUTDOWN = "shutdown"
    FINAL = "final"
    #: One that this version does not know.
    UNKNOWN = "unspecified"


class LineageKind(StrEnum):
    """What happened to a state beside training itself."""

    FORKED = "forked"
    #: It went on where other bytes may come out, because that was allowed.
    INEXACT = "inexact"
    #: It went on elsewhere, after steps run again there gave the same bytes.
    REPLAY_VERIFIED = "replay_verified"
    LEARNING_RATE = "learning_rate"
    ROLLED_BACK = "rolled_back"
    #: One that this version does not know.
    UNKNOWN = "unspecified"


@dataclass(frozen=True)
class LineageEvent:
    """One thing that happened to a state beside training itself."""

    kind: LineageKind
    #: Optimizer steps done when it happened.
    step: int
    message: str


@dataclass(frozen=True)
class Checkpoint:
    """State in the store, complete and verified."""

    id: str
    operation_id: str
    attempt: int
    #: The epoch the next step belongs to, counted from 0; as many are done.
    epoch: int
    #: Optimizer steps taken.
    step: int
    trigger: CheckpointTrigger
    created: datetime
    #: Bytes of the state, and those of them that had to travel to the store.
    logical_bytes: int
    uploaded_bytes: int
    #: BLAKE3 in hexadecimal, by kind (weights, optimizer, ...) and of all (state).
    digests: Mapping[str, str]
    #: Of the last completed epoch.
    metrics: Mapping[str, float]
    #: The metric that decides which checkpoint is the best, and its value here.
    monitor: str
    monitor_value: float | None
    pinned: bool
    #: exact, exact-replay-verified, or `inexact from step N`.
    lineage: str
    lineage_events: tuple[LineageEvent, ...] = ()


@dataclass(frozen=True)
class Verification:
    """A checkpoint whose every blob was read again and found whole."""

    blobs: int
    bytes: int


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """What came out of reading a checkpoint again."""

    checkpoint_id: str
    operation_id: str
    step: int
    damaged: bool
    #: The key of the first blob, or of the manifest, that is damaged; else empty.
    damaged_key: str
    message: str
    blobs: int
    bytes: int


@dataclass(frozen=True)
class StorageUsage:
    """What checkpoints take in the store."""

    checkpoints: int
    #: What they would take without sharing blobs, and what sharing saves of it.
    logical_bytes: int
    saved_bytes: int
    stored_bytes: int
    stored_blobs: int
    #: What no checkpoint needs: a garbage collection frees it.
    reclaimable_bytes: int
    reclaimable_blobs: int
    damaged_checkpoints: int
    unregistered_checkpoints: int
    unreadable_manifests: int
    unfinished_uploads: int
    unfinished_bytes: int


@dataclass(frozen=True)
class CollectedGarbage:
    """What a garbage collection removed, or would remove."""

    removed_blobs: int
    removed_bytes: int
    kept_blobs: int
    aborted_uploads: int
    aborted_bytes: int
    #: Nothing was removed; this is what would be.
    dry_run: bool = field(default=False)
