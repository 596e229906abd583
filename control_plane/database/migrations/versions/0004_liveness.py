"""What is heard of each attempt, and since when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "attempts",
        sa.Column("liveness", sa.String(length=16), server_default="HEARD", nullable=False),
    )
    op.add_column("attempts", sa.Column("liveness_time", sa.BigInteger(), nullable=True))
