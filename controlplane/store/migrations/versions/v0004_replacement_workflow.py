"""Replacements that are paused, cancelled, restarted or mended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_RUNNING = "state NOT IN ('DONE', 'FAILED', 'CANCELLED')"
_RUNNING_BEFORE = "state NOT IN ('DONE', 'FAILED')"


def upgrade() -> None:
    """To this version."""
    for column in (
        sa.Column("paused_in", sa.String(16), nullable=True),
        sa.Column("blocked_since", sa.Float(), nullable=True),
        sa.Column("restarts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("mended", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("mending", sa.Integer(), nullable=True),
        sa.Column("target_was", sa.String(16), nullable=False, server_default=""),
    ):
        op.add_column("replacements", column)
    _index(_RUNNING)


def downgrade() -> None:
    """Back to the version before."""
    _index(_RUNNING_BEFORE)
    for name in ("target_was", "mending", "mended", "restarts", "blocked_since", "paused_in"):
        op.drop_column("replacements", name)


def _index(running: str) -> None:
    """One running replacement a disk, by what running means."""
    op.drop_index("uq_replacements_running", "replacements")
    op.create_index(
        "uq_replacements_running",
        "replacements",
        ["disk_key"],
        unique=True,
        sqlite_where=sa.text(running),
        postgresql_where=sa.text(running),
    )
