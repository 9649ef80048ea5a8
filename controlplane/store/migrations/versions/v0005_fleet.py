"""Where downstairs stand and how they are; the fleet's policy, faulted members and drains; who
began a replacement and how its target was found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = (
    "fleet_places", "fleet_looks", "fleet_agents", "makings", "fleet_policy", "faulted_members",
    "drains",
)  # fmt: skip


def upgrade() -> None:
    """To this version."""
    _add_places()
    _add_agents()
    op.create_table(
        "fleet_policy",
        sa.Column("key", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("automatic", sa.Boolean(), nullable=False),
        sa.Column("grace_seconds", sa.Float(), nullable=False),
        sa.Column("maintenance", sa.Boolean(), nullable=False),
        sa.Column("at_once_max", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_fleet_policy")),
    )
    op.create_table(
        "faulted_members",
        sa.Column("disk_key", sa.String(length=36), nullable=False),
        sa.Column("region_path", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("disk", sa.String(length=63), nullable=False),
        sa.Column("target", sa.String(length=300), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("waits_for", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("disk_key", "region_path", "slot", name=op.f("pk_faulted_members")),
    )
    op.create_table(
        "drains",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("target", sa.String(length=300), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_drains")),
        sa.UniqueConstraint("id", name=op.f("uq_drains_id")),
    )
    op.create_index(op.f("ix_drains_target"), "drains", ["target"])
    op.add_column(
        "replacements",
        sa.Column("asked_by", sa.String(length=64), nullable=False, server_default=""),
    )
    op.add_column(
        "replacements", sa.Column("placement", sa.Text(), nullable=False, server_default="")
    )
    op.create_index(op.f("ix_replacements_asked_by"), "replacements", ["asked_by"])


def _add_places() -> None:
    op.create_table(
        "fleet_places",
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("host", sa.String(length=253), nullable=False),
        sa.Column("failure_domain", sa.String(length=253), nullable=False),
        sa.Column("agent", sa.String(length=300), nullable=False),
        sa.Column("reserved_for", sa.String(length=36), nullable=True),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_fleet_places")),
    )
    op.create_table(
        "fleet_looks",
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("health", sa.String(length=16), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=True),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=True),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("region_id", sa.String(length=36), nullable=True),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_fleet_looks")),
    )


def _add_agents() -> None:
    op.create_table(
        "fleet_agents",
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("host", sa.String(length=253), nullable=False),
        sa.Column("failure_domain", sa.String(length=253), nullable=False),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_fleet_agents")),
    )
    op.create_table(
        "makings",
        sa.Column("replacement_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=300), nullable=False),
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("replacement_id", name=op.f("pk_makings")),
    )


def downgrade() -> None:
    """Back to the version before."""
    op.drop_index(op.f("ix_replacements_asked_by"), "replacements")
    op.drop_column("replacements", "placement")
    op.drop_column("replacements", "asked_by")
    for name in _TABLES:
        op.drop_table(name)
