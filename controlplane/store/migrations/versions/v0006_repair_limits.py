"""What is wanted of the repairs of each volume, and the fleet's rate."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "repair_limits",
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("bytes_per_second_max", sa.BigInteger(), nullable=False),
        sa.Column("bytes_per_second_min", sa.BigInteger(), nullable=False),
        sa.Column("extents_in_flight_max", sa.Integer(), nullable=False),
        sa.Column("adaptive", sa.Boolean(), nullable=True),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("pk_repair_limits")),
    )
    # What was set for a replacement that runs goes on for its volume.
    op.execute(
        "INSERT INTO repair_limits (volume_id, bytes_per_second_max, bytes_per_second_min,"
        " extents_in_flight_max) SELECT volume_id, bytes_per_second_max, 0, 0 FROM replacements"
        " WHERE bytes_per_second_max > 0 AND state NOT IN ('DONE', 'FAILED', 'CANCELLED')"
    )
    op.add_column(
        "fleet_policy",
        sa.Column("repair_bytes_per_second", sa.BigInteger(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Back to the version before."""
    op.drop_column("fleet_policy", "repair_bytes_per_second")
    op.drop_table("repair_limits")
