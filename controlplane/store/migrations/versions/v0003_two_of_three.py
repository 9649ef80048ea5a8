"""How long two copies of an instance's disks wait for the third."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.add_column(
        "instances",
        sa.Column("activate_with_two_after", sa.Float(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Back to the version before."""
    op.drop_column("instances", "activate_with_two_after")
