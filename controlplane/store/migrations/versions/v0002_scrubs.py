"""Scrubs of disks from their read-only parents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "scrubs",
        sa.Column("disk_key", sa.String(length=36), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("disk", sa.String(length=63), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("bytes_done", sa.String(length=20), nullable=False),
        sa.Column("bytes_total", sa.String(length=20), nullable=False),
        sa.Column("bytes_per_second_max", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.Float(), nullable=True),
        sa.Column("blocked_on", sa.Text(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("recorded_generation", sa.String(length=20), nullable=False),
        sa.ForeignKeyConstraint(["disk_key"], ["disks.key"], name=op.f("fk_scrubs_disk_key")),
        sa.PrimaryKeyConstraint("disk_key", "path", name=op.f("pk_scrubs")),
    )


def downgrade() -> None:
    """Back to the version before."""
    op.drop_table("scrubs")
