"""The tables. Times are seconds since the epoch, ids are lower-case UUID text.

A construction request sits in two columns: `…construction` is the JSON with its secrets hidden, for
eyes and tools; `…sealed` is the whole JSON encrypted, only where something was hidden.

What one task drives carries its lease: `lease_epoch` rises with each new owner, `lease_until` is on
the database's clock and null where one control plane has the store for itself.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
    true,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _name(length: int) -> String:
    """A text in the order of its letters' numbers, whatever order the database was made with."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


def _unique_where(name: str, column: str, condition: str) -> Index:
    """Unique among the rows for which the condition holds, in either database."""
    where = text(condition)
    return Index(name, column, unique=True, sqlite_where=where, postgresql_where=where)


def _lease() -> tuple[Column[Any], ...]:
    return (
        Column("lease_owner", String(64), nullable=True),
        Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
        Column("lease_until", Float, nullable=True),
    )


instances = Table(
    "instances",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", _name(63), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("state_generation", BigInteger, nullable=False),
    Column("desired", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("cpus", Integer, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("activate_with_two_after", Float, nullable=False, server_default="0"),
    *_lease(),
)

disks = Table(
    "disks",
    metadata,
    Column("key", String(36), primary_key=True),
    Column("name", _name(63), nullable=False, unique=True),
    Column("device", String(16), nullable=False),
    Column("instance_id", String(36), ForeignKey("instances.id"), nullable=False, index=True),
    Column("slot", Integer, nullable=False),
    Column("read_only", Boolean, nullable=False),
    Column("volume_id", String(36), nullable=False, unique=True),
    # Text, since a generation may use all of 64 bits.
    Column("generation", String(20), nullable=False),
    Column("construction", Text, nullable=False),
    Column("construction_sealed", LargeBinary, nullable=True),
    # Into a running machine, and may so be unplugged from the next one made of it, too.
    Column("plugged", Boolean, nullable=False, server_default=false()),
)

# The highest generation a volume was given to a machine with. Outlives the disk: a volume that is
# recorded again must still rise above what its downstairs were promoted to.
generations = Table(
    "generations",
    metadata,
    Column("volume_id", String(36), primary_key=True),
    Column("generation", String(20), nullable=False),
)

fleet = Table(
    "fleet",
    metadata,
    Column("address", _name(300), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("region_id", String(36), nullable=True),
    Column("volume_id", String(36), nullable=True),
    Column("block_size", BigInteger, nullable=True),
    Column("blocks_per_extent", BigInteger, nullable=True),
    Column("extent_count", BigInteger, nullable=True),
    Column("encrypted", Boolean, nullable=False),
)

# Where downstairs stand, and how they were when last looked at. Outlives a change of role.
fleet_places = Table(
    "fleet_places",
    metadata,
    Column("address", String(300), primary_key=True),
    Column("host", String(253), nullable=False),
    Column("failure_domain", String(253), nullable=False),
    Column("agent", String(300), nullable=False),
    Column("reserved_for", String(36), nullable=True),
)

fleet_looks = Table(
    "fleet_looks",
    metadata,
    Column("address", String(300), primary_key=True),
    Column("at", Float, nullable=False),
    Column("health", String(16), nullable=False),
    Column("trouble", Text, nullable=False),
    Column("seen_at", Float, nullable=True),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("free_bytes", BigInteger, nullable=True),
    Column("read_only", Boolean, nullable=False),
    Column("region_id", String(36), nullable=True),
)

# Agents that may be asked for regions.
fleet_agents = Table(
    "fleet_agents",
    metadata,
    Column("address", String(300), primary_key=True),
    Column("host", String(253), nullable=False),
    Column("failure_domain", String(253), nullable=False),
)

# Regions asked of agents for replacements: from before the asking until the replacement is done, or
# the region is gone again. The region has the replacement's id.
makings = Table(
    "makings",
    metadata,
    Column("replacement_id", String(36), primary_key=True),
    Column("agent", String(300), nullable=False),
    Column("address", String(300), nullable=False),
    Column("created_at", Float, nullable=False),
)

# One row, with the key 1; none before the policy was first changed.
fleet_policy = Table(
    "fleet_policy",
    metadata,
    Column("key", Integer, primary_key=True, autoincrement=False),
    Column("automatic", Boolean, nullable=False),
    Column("grace_seconds", Float, nullable=False),
    Column("maintenance", Boolean, nullable=False),
    Column("at_once_max", Integer, nullable=False),
    Column("repair_bytes_per_second", BigInteger, nullable=False, server_default="0"),
)

# What is wanted of a volume's repairs, where that is not the default. Outlives the disk, as its
# generation does.
repair_limits = Table(
    "repair_limits",
    metadata,
    Column("volume_id", String(36), primary_key=True),
    Column("bytes_per_second_max", BigInteger, nullable=False),
    Column("bytes_per_second_min", BigInteger, nullable=False),
    Column("extents_in_flight_max", Integer, nullable=False),
    Column("adaptive", Boolean, nullable=True),
)

faulted_members = Table(
    "faulted_members",
    metadata,
    Column("disk_key", String(36), primary_key=True),
    Column("region_path", Text, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("disk", String(63), nullable=False),
    Column("target", String(300), nullable=False),
    Column("since", Float, nullable=False),
    Column("trouble", Text, nullable=False),
    Column("waits_for", Text, nullable=False),
)

drains = Table(
    "drains",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("target", String(300), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    _unique_where("uq_drains_running", "target", "state = 'RUNNING'"),
)

replacements = Table(
    "replacements",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    # No foreign keys: the history outlives the disk.
    Column("disk_key", String(36), nullable=False, index=True),
    Column("disk", String(63), nullable=False),
    Column("instance_id", String(36), nullable=False),
    Column("volume_id", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("path", Text, nullable=False),
    Column("region_path", Text, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("old_target", String(300), nullable=False),
    Column("new_target", String(300), nullable=False),
    Column("from_generation", String(20), nullable=False),
    Column("to_generation", String(20), nullable=False),
    Column("original_construction", Text, nullable=False),
    Column("original_sealed", LargeBinary, nullable=True),
    Column("replacement_construction", Text, nullable=False),
    Column("replacement_sealed", LargeBinary, nullable=True),
    Column("traceparent", String(64), nullable=False),
    Column("trace_id", String(32), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("bytes_done", BigInteger, nullable=False),
    Column("bytes_total", BigInteger, nullable=False),
    Column("bytes_copied", BigInteger, nullable=False),
    Column("extents_done", BigInteger, nullable=False),
    Column("extents_total", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("next_attempt_at", Float, nullable=True),
    Column("blocked_on", Text, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("failed_in", String(16), nullable=True),
    Column("bytes_per_second_max", BigInteger, nullable=False),
    Column("paused_in", String(16), nullable=True),
    Column("blocked_since", Float, nullable=True),
    Column("restarts", Integer, nullable=False, server_default="0"),
    Column("mended", Integer, nullable=False, server_default="0"),
    Column("mending", Integer, nullable=True),
    Column("target_was", String(16), nullable=False, server_default=""),
    # Who began it, and how its target was found (JSON); empty for a request that was sent.
    Column("asked_by", String(64), nullable=False, server_default="", index=True),
    Column("placement", Text, nullable=False, server_default=""),
    *_lease(),
    _unique_where(
        "uq_replacements_running", "disk_key", "state NOT IN ('DONE', 'FAILED', 'CANCELLED')"
    ),
)

transitions = Table(
    "transitions",
    metadata,
    Column("replacement_id", String(36), ForeignKey("replacements.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("event", String(32), nullable=False),
    Column("detail", Text, nullable=False),
)

# The newest scrub of each volume that had one; a disk that goes takes its own with it.
scrubs = Table(
    "scrubs",
    metadata,
    Column("disk_key", String(36), ForeignKey("disks.key"), primary_key=True),
    Column("path", Text, primary_key=True),
    Column("disk", String(63), nullable=False),
    Column("instance_id", String(36), nullable=False),
    Column("volume_id", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    # Text, since what a URL says of its size may use all of 64 bits.
    Column("bytes_done", String(20), nullable=False),
    Column("bytes_total", String(20), nullable=False),
    Column("bytes_per_second_max", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("next_attempt_at", Float, nullable=True),
    Column("blocked_on", Text, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("recorded_generation", String(20), nullable=False),
    *_lease(),
)

spans = Table(
    "spans",
    metadata,
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("ended", Boolean, nullable=False, server_default=true()),
)

requests = Table(
    "requests",
    metadata,
    Column("method", String(64), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("at", Float, nullable=False, index=True),
)

# What users say to a task that another control plane drives; `answer` is null until it was heard.
wishes = Table(
    "wishes",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("key", Text, nullable=False),
    Column("word", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("answer", Text, nullable=True),
)

# What one control plane does for all of them; `notes` are for the next one who does it.
duties = Table(
    "duties",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("notes", Text, nullable=False, server_default="[]"),
    *_lease(),
)

# What the store knows of itself.
facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
