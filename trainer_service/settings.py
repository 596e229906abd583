"""The trainer's settings, from EVERSTEP_* alone."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from everstep.rpc.logs import LogFormat

_LABEL_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")


class TrainerSettings(BaseSettings):
    """How one trainer runs."""

    model_config = SettingsConfigDict(env_prefix="EVERSTEP_", extra="ignore")

    #: host:port to serve on; port 0 takes any free one.
    listen: str = "127.0.0.1:7071"
    #: host:port at which the control plane reaches this trainer; empty: as `listen`.
    advertise: str = ""
    trainer_id: str = Field(
        default_factory=lambda: f"trainer-{socket.gethostname().lower().replace('_', '-')}"[:60],
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
    )
    #: Operations may choose this trainer by these; as in `gpu=h100,site=lab`.
    labels: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    #: Trainings at a time.
    capacity: int = Field(default=1, ge=1, le=1024)
    #: host:port of the control plane; empty: this trainer serves direct callers only.
    control_plane: str = ""
    #: Holds the journal of events.
    state_dir: Path = Path(".everstep/trainer")
    #: Strategies name data files relative to this folder.
    data_root: Path = Path("data")
    #: Packages whose `package.module:factory` a strategy may name, separated by commas.
    allowed_packages: Annotated[tuple[str, ...], NoDecode] = ()
    #: Where trainings compute: cpu, cuda, cuda:N, or auto: CUDA where torch sees it, else the CPU.
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")
    #: Threads of one training; 0: all cores divided by the capacity.
    threads: int = Field(default=0, ge=0, le=1024)
    #: Processes kept ready with torch imported, so that a start does not wait for it.
    spare_children: int = Field(default=1, ge=0, le=64)
    #: New processes an attempt may need before it is given up.
    max_local_restarts: int = Field(default=3, ge=0, le=1000)
    #: Seconds before the first of them; doubled each time.
    restart_backoff_seconds: float = Field(default=0.2, ge=0)
    #: Seconds without a step after which a training hangs, and is restarted; 20 times the longest
    #: step so far where that is more; 12 times as many for data and a first step; 0: never.
    hung_seconds: float = Field(default=300, ge=0)
    #: The share of the time that training may wait for snapshots in memory, from which it goes on
    #: when its process dies; 0: only checkpoints are kept there.
    stall_budget: float = Field(default=0.01, ge=0, le=1)
    #: The trainer stops as at SIGTERM once this file is there: as cloud agents write it before they
    #: take the machine away. SIGUSR2 says the same.
    preemption_file: Path | None = None
    #: Seconds a training waits for a store that is away, full or refuses it, where it cannot go on
    #: without: before it begins or goes on, and at its end.
    store_patience_seconds: float = Field(default=600, ge=0)
    #: Seconds a stop waits for checkpoints.
    stop_grace_seconds: float = Field(default=30, ge=0)
    #: Days an attempt's events are kept when nobody says that they may go.
    journal_days: float = Field(default=7, gt=0)
    store_url: str = "file://" + os.path.abspath(".everstep/store")
    store_access_key: str = ""
    store_secret_key: str = ""
    store_region: str = "us-east-1"
    reflection: bool = False
    log_format: LogFormat = "console"

    @field_validator("allowed_packages", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _parse_labels(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("write KEY=VALUE, separated by commas")
        return {name: label for name, _, label in pairs}

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        """The contract's limits: else every registration would be refused, over and over."""
        for name, label in labels.items():
            if not _LABEL_NAME.fullmatch(name) or len(label) > 256:
                raise ValueError(
                    f"{name}={label[:40]} is no label; a name has up to 63 of a-z, 0-9 and ._/-, "
                    "and begins with a letter or digit; a value has up to 256 characters"
                )
        if len(labels) > 64:
            raise ValueError("there may be 64 labels")
        return labels

    def training_threads(self) -> int:
        """Threads of one training on this machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.threads or max(1, (cores or 1) // self.capacity)
