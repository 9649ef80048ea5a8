"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    _create_fleet()
    _create_generations()
    _create_instances()
    _create_replacements()
    _create_requests()
    _create_spans()
    _create_disks()
    _create_transitions()


def downgrade() -> None:
    """Back to nothing."""
    for name in (
        "transitions",
        "disks",
        "spans",
        "requests",
        "replacements",
        "instances",
        "generations",
        "fleet",
    ):
        op.drop_table(name)


def _create_fleet() -> None:
    op.create_table(
        "fleet",
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("region_id", sa.String(length=36), nullable=True),
        sa.Column("volume_id", sa.String(length=36), nullable=True),
        sa.Column("block_size", sa.BigInteger(), nullable=True),
        sa.Column("blocks_per_extent", sa.BigInteger(), nullable=True),
        sa.Column("extent_count", sa.BigInteger(), nullable=True),
        sa.Column("encrypted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_fleet")),
    )


def _create_generations() -> None:
    op.create_table(
        "generations",
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("generation", sa.String(length=20), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("pk_generations")),
    )


def _create_instances() -> None:
    op.create_table(
        "instances",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_generation", sa.BigInteger(), nullable=False),
        sa.Column("desired", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("cpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("confirmed", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("name", name=op.f("uq_instances_name")),
    )


def _create_replacements() -> None:
    op.create_table(
        "replacements",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("disk_key", sa.String(length=36), nullable=False),
        sa.Column("disk", sa.String(length=63), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("region_path", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("old_target", sa.String(length=300), nullable=False),
        sa.Column("new_target", sa.String(length=300), nullable=False),
        sa.Column("from_generation", sa.String(length=20), nullable=False),
        sa.Column("to_generation", sa.String(length=20), nullable=False),
        sa.Column("original_construction", sa.Text(), nullable=False),
        sa.Column("original_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("replacement_construction", sa.Text(), nullable=False),
        sa.Column("replacement_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("traceparent", sa.String(length=64), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_copied", sa.BigInteger(), nullable=False),
        sa.Column("extents_done", sa.BigInteger(), nullable=False),
        sa.Column("extents_total", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.Float(), nullable=True),
        sa.Column("blocked_on", sa.Text(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("failed_in", sa.String(length=16), nullable=True),
        sa.Column("bytes_per_second_max", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_replacements")),
        sa.UniqueConstraint("id", name=op.f("uq_replacements_id")),
    )
    with op.batch_alter_table("replacements", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_replacements_disk_key"), ["disk_key"], unique=False)
        batch_op.create_index(batch_op.f("ix_replacements_trace_id"), ["trace_id"], unique=False)
        batch_op.create_index(
            "uq_replacements_running",
            ["disk_key"],
            unique=True,
            sqlite_where=sa.text("state NOT IN ('DONE', 'FAILED')"),
            postgresql_where=sa.text("state NOT IN ('DONE', 'FAILED')"),
        )


def _create_requests() -> None:
    op.create_table(
        "requests",
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("method", "request_id", name=op.f("pk_requests")),
    )
    with op.batch_alter_table("requests", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_requests_at"), ["at"], unique=False)


def _create_spans() -> None:
    op.create_table(
        "spans",
        sa.Column("trace_id", sa.String(length=32), nullable=False),
        sa.Column("span_id", sa.String(length=16), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "span_id", name=op.f("pk_spans")),
    )


def _create_disks() -> None:
    op.create_table(
        "disks",
        sa.Column("key", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("device", sa.String(length=16), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("generation", sa.String(length=20), nullable=False),
        sa.Column("construction", sa.Text(), nullable=False),
        sa.Column("construction_sealed", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_disks_instance_id")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_disks")),
        sa.UniqueConstraint("name", name=op.f("uq_disks_name")),
        sa.UniqueConstraint("volume_id", name=op.f("uq_disks_volume_id")),
    )
    with op.batch_alter_table("disks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_disks_instance_id"), ["instance_id"], unique=False)


def _create_transitions() -> None:
    op.create_table(
        "transitions",
        sa.Column("replacement_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["replacement_id"], ["replacements.id"], name=op.f("fk_transitions_replacement_id")
        ),
        sa.PrimaryKeyConstraint("replacement_id", "number", name=op.f("pk_transitions")),
    )
