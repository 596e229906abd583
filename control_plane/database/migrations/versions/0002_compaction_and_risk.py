"""The first event that is kept of each operation, and its work at risk."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "operations",
        sa.Column("first_sequence", sa.BigInteger(), server_default="1", nullable=False),
    )
    op.add_column("operations", sa.Column("at_risk", sa.LargeBinary(), nullable=True))
