"""Rows of trainers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from control_plane.database.schema import trainers


@dataclass(frozen=True)
class TrainerRecord:
    """One row; see the table for what each column means."""

    trainer_id: str
    address: str
    capacity: int
    environment: bytes
    lease_expire_time: int
    stopping: bool
    drained: bool
    labels: str
    heard_time: int

    def alive(self, now: int) -> bool:
        """Whether its lease holds."""
        return self.lease_expire_time > now

    def takes_work(self, now: int) -> bool:
        """Whether it is there and may be given more."""
        return self.alive(now) and not self.stopping and not self.drained


def register(
    connection: Connection,
    trainer_id: str,
    address: str,
    capacity: int,
    environment: bytes,
    lease_expire_time: int,
    stopping: bool,
    labels: str,
    heard_time: int,
) -> None:
    """Inserts a trainer or renews its lease; `drained` is left as it is."""
    values = {
        "address": address,
        "capacity": capacity,
        "environment": environment,
        "lease_expire_time": lease_expire_time,
        "stopping": stopping,
        "labels": labels,
        "heard_time": heard_time,
    }
    renewed = connection.execute(
        update(trainers).where(trainers.c.trainer_id == trainer_id).values(**values)
    )
    if renewed.rowcount == 0:
        connection.execute(insert(trainers).values(trainer_id=trainer_id, drained=False, **values))


def find(connection: Connection, trainer_id: str) -> TrainerRecord | None:
    """The trainer, or None."""
    row = connection.execute(
        select(trainers).where(trainers.c.trainer_id == trainer_id)
    ).one_or_none()
    return None if row is None else TrainerRecord(**row._mapping)


def find_many(connection: Connection, trainer_ids: Iterable[str]) -> dict[str, TrainerRecord]:
    """Those of the trainers that there are, by id."""
    rows = connection.execute(select(trainers).where(trainers.c.trainer_id.in_(list(trainer_ids))))
    return {row.trainer_id: TrainerRecord(**row._mapping) for row in rows}


def every(connection: Connection, *, lock: bool = False) -> list[TrainerRecord]:
    """All trainers by id; with `lock`, nobody else gives them work until this transaction ends."""
    query = select(trainers).order_by(trainers.c.trainer_id)
    rows = connection.execute(query.with_for_update() if lock else query)
    return [TrainerRecord(**row._mapping) for row in rows]


def set_values(connection: Connection, trainer_id: str, **values: Any) -> bool:
    """Sets columns of one trainer; False when there is none."""
    changed = connection.execute(
        update(trainers).where(trainers.c.trainer_id == trainer_id).values(**values)
    )
    return changed.rowcount == 1


def cap_leases(connection: Connection, latest: int) -> None:
    """No lease lasts longer than this: one that does was given before the clock went back."""
    connection.execute(
        update(trainers)
        .where(trainers.c.lease_expire_time > latest)
        .values(lease_expire_time=latest)
    )
