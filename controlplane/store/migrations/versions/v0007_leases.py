"""Leases and wishes: several control planes on one database; the store's own facts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None

_LEASED = ("instances", "replacements", "scrubs")
# Names that are listed in order: (table, column, length).
_ORDERED = (("instances", "name", 63), ("disks", "name", 63), ("fleet", "address", 300))


def upgrade() -> None:
    """To this version."""
    for table in _LEASED:
        op.add_column(table, sa.Column("lease_owner", sa.String(64), nullable=True))
        op.add_column(
            table, sa.Column("lease_epoch", sa.BigInteger(), nullable=False, server_default="0")
        )
        op.add_column(table, sa.Column("lease_until", sa.Float(), nullable=True))
    op.create_table(
        "wishes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("word", sa.String(length=32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_wishes")),
    )
    op.create_table(
        "facts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_facts")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # SQLite has no other order.
        for table, column, length in _ORDERED:
            op.alter_column(table, column, type_=sa.String(length, collation="C"))


def downgrade() -> None:
    """Back to the version before."""
    op.drop_table("facts")
    op.drop_table("wishes")
    for table in _LEASED:
        for column in ("lease_until", "lease_epoch", "lease_owner"):
            op.drop_column(table, column)
