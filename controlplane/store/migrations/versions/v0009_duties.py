"""What one of several control planes does for all of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    duties = op.create_table(
        "duties",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("notes", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("lease_owner", sa.String(64), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("lease_until", sa.Float(), nullable=True),
    )
    op.bulk_insert(duties, [{"name": "caretaker"}])


def downgrade() -> None:
    """Back to the version before."""
    op.drop_table("duties")
