"""Spans that are stored before they have ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.add_column(
        "spans", sa.Column("ended", sa.Boolean(), nullable=False, server_default=sa.true())
    )


def downgrade() -> None:
    """Back to the version before."""
    op.drop_column("spans", "ended")
