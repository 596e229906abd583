"""The control plane's settings, from EVERSTEP_* alone."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from control_plane.limits import MAX_QUEUED
from everstep.rpc.logs import LogFormat


class ControlPlaneSettings(BaseSettings):
    """How one control plane runs."""

    model_config = SettingsConfigDict(env_prefix="EVERSTEP_", extra="ignore")

    #: host:port to serve on; port 0 takes any free one.
    listen: str = "127.0.0.1:7070"
    #: sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME.
    database_url: str = "sqlite:///./.everstep/control-plane.db"
    #: The name of this control plane; each one that shares a database has its own.
    instance: str = Field(default="control-plane", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    #: Seconds that a trainer counts as alive after it was last heard.
    lease_seconds: float = Field(default=15, gt=0, le=3600)
    #: Seconds that an attempt is left to a trainer that cannot be reached any more, though its
    #: heartbeat comes.
    unreachable_seconds: float = Field(default=900, gt=0)
    #: The newest events that are kept of each operation; 0: all.
    keep_events: int = Field(default=0, ge=0)
    #: Days that a finished operation keeps more than its last event; 0: for ever.
    keep_events_days: float = Field(default=0, ge=0, allow_inf_nan=False)
    #: Operations that may wait for a trainer; one more is refused.
    max_queued: int = Field(default=MAX_QUEUED, ge=1)
    #: Watches at a time; one more is refused.
    max_watches: int = Field(default=2_000, ge=1)
    #: Seconds that calls have to finish when the service stops.
    stop_grace_seconds: float = Field(default=3, ge=0)
    store_url: str = "file://" + os.path.abspath(".everstep/store")
    store_access_key: str = ""
    store_secret_key: str = ""
    store_region: str = "us-east-1"
    #: The store as callers reach it, in download URLs; empty: as `store_url`.
    store_public_url: str = ""
    #: host:port to serve the dashboard on; port 0 takes any free one; empty: no dashboard.
    dashboard_listen: str = ""
    #: Names under which browsers reach the dashboard, beside localhost and IP addresses.
    dashboard_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    reflection: bool = False
    log_format: LogFormat = "console"

    @field_validator("dashboard_allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
