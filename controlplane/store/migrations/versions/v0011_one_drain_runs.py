"""A target has one drain that runs, whichever control plane began it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_RUNNING = sa.text("state = 'RUNNING'")


def upgrade() -> None:
    """To this version; of several that run for one target, the newest goes on."""
    op.execute(
        "UPDATE drains SET state = 'CANCELLED' WHERE state = 'RUNNING' AND EXISTS (SELECT 1 FROM"
        " drains AS later WHERE later.target = drains.target AND later.state = 'RUNNING' AND"
        " later.number > drains.number)"
    )
    op.create_index(
        "uq_drains_running",
        "drains",
        ["target"],
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    )


def downgrade() -> None:
    """Back to the version before."""
    op.drop_index("uq_drains_running", "drains")
