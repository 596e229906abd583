"""Priorities, labels of trainers and of operations that choose them, and moves between trainers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from blake3 import blake3

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_operations = sa.table(
    "operations",
    sa.column("operation_id", sa.String()),
    sa.column("create_time", sa.BigInteger()),
    sa.column("attempt", sa.Integer()),
    sa.column("queue_time", sa.BigInteger()),
    sa.column("demand", sa.String()),
)
_attempts = sa.table(
    "attempts",
    sa.column("operation_id", sa.String()),
    sa.column("number", sa.Integer()),
    sa.column("environment", sa.LargeBinary()),
)


def upgrade() -> None:
    for column in (
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("queue_time", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("trainer_labels", sa.Text(), server_default="{}", nullable=False),
        sa.Column("demand", sa.String(length=64), server_default="", nullable=False),
        sa.Column("moving_to", sa.String(length=63), server_default="", nullable=False),
    ):
        op.add_column("operations", column)
    op.add_column("trainers", sa.Column("labels", sa.Text(), server_default="{}", nullable=False))
    op.add_column(
        "trainers", sa.Column("heard_time", sa.BigInteger(), server_default="0", nullable=False)
    )
    _fill()
    op.create_index(
        op.f("ix_operations_state_demand_queue_time_operation_id_due_time"),
        "operations",
        ["state", "demand", "queue_time", "operation_id", "due_time"],
        unique=False,
    )
    op.create_index(op.f("ix_operations_moving_to"), "operations", ["moving_to"], unique=False)


def _fill() -> None:
    """Nobody chose a trainer by labels before: the newest attempt's environment is all there is."""
    connection = op.get_bind()
    newest = _operations.outerjoin(
        _attempts,
        (_attempts.c.operation_id == _operations.c.operation_id)
        & (_attempts.c.number == _operations.c.attempt),
    )
    rows = connection.execute(
        sa.select(_operations.c.operation_id, _attempts.c.environment).select_from(newest)
    ).all()
    filled = [
        {
            "key": row.operation_id,
            "digest": blake3(
                b"{}\0" + (b"" if row.environment is None else b"\1" + row.environment)
            ).hexdigest(),
        }
        for row in rows
    ]
    if filled:
        connection.execute(
            sa.update(_operations)
            .where(_operations.c.operation_id == sa.bindparam("key"))
            .values(queue_time=_operations.c.create_time, demand=sa.bindparam("digest")),
            filled,
        )
