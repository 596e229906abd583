"""Deleted operations, and their attempts that trainers may keep, or train, still."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deleted_operations",
        sa.Column("operation_id", sa.String(length=64), nullable=False),
        sa.Column("delete_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_deleted_operations")),
    )
    op.create_table(
        "orphaned_attempts",
        sa.Column("operation_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("trainer_id", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", "number", name=op.f("pk_orphaned_attempts")),
    )
    op.create_index(
        op.f("ix_orphaned_attempts_trainer_id"), "orphaned_attempts", ["trainer_id"], unique=False
    )
