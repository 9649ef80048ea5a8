"""The statements about leases and wishes. Each function runs in one transaction.

A lease is three columns of the row it is for. The time is the database's: every control plane asks
the same clock, whatever its host believes. A holder without a time has the store for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Float,
    Table,
    Update,
    and_,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    tuple_,
    update,
)

from controlplane.core.leases import Kind, LeaseLostError
from controlplane.core.records import InstanceState
from controlplane.core.replacement import State as ReplacementState
from controlplane.core.scrub import State as ScrubState
from controlplane.store.base import Wish
from controlplane.store.schema import duties, instances, replacements, scrubs, wishes
from stairlib.model.errors import NotFoundError

# Wishes nobody came back for.
_WISHES_KEPT_SECONDS = 3600.0
# Parts a key is put together from.
SEPARATOR = ":"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds leases. `seconds` is how long each lasts; None where nobody else can come."""

    name: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class _Leased:
    """One table with leases: its key, and the rows that are driven."""

    table: Table
    columns: tuple[Column[Any], ...]
    driven: ColumnElement[bool]

    def at(self, key: str) -> ColumnElement[bool]:
        """The row of a key."""
        parts = key.split(SEPARATOR, len(self.columns) - 1)
        return and_(*(column == part for column, part in zip(self.columns, parts, strict=True)))


def _not_in(column: Column[Any], ended: Iterable[Any]) -> ColumnElement[bool]:
    return column.not_in([state.value for state in ended if state.ended])


_TABLES = {
    Kind.INSTANCE: _Leased(instances, (instances.c.id,), _not_in(instances.c.state, InstanceState)),
    Kind.REPLACEMENT: _Leased(
        replacements, (replacements.c.id,), _not_in(replacements.c.state, ReplacementState)
    ),
    Kind.SCRUB: _Leased(
        scrubs, (scrubs.c.disk_key, scrubs.c.path), _not_in(scrubs.c.state, ScrubState)
    ),
    # A duty never ends.
    Kind.DUTY: _Leased(duties, (duties.c.name,), true()),
}


def now(connection: Connection) -> ColumnElement[float]:
    """The database's clock, in seconds since the epoch; it goes on within a transaction."""
    return _clock(connection.dialect.name)


def _clock(dialect: str) -> ColumnElement[float]:
    if dialect == "postgresql":
        return cast(func.extract("epoch", func.clock_timestamp()), Float)
    return cast((func.julianday("now") - 2440587.5) * 86400.0, Float)


def _until(connection: Connection, owner: Owner) -> ColumnElement[float] | None:
    return None if owner.seconds is None else now(connection) + owner.seconds


def columns(connection: Connection, owner: Owner) -> dict[str, Any]:
    """What a row is inserted with by the one who will drive it: epoch 1."""
    return {
        "lease_owner": owner.name,
        "lease_epoch": 1,
        "lease_until": _until(connection, owner),
    }


def taken_columns(connection: Connection, owner: Owner, table: Table) -> dict[str, Any]:
    """What a row is updated with by the one who takes it."""
    return {**columns(connection, owner), "lease_epoch": table.c.lease_epoch + 1}


def held(connection: Connection, table: Table, owner: Owner, epoch: int) -> ColumnElement[bool]:
    """Whether a row's lease is this owner's, of this epoch, and has not ended."""
    return held_by(connection.dialect.name, table, owner.name, epoch)


def held_by(
    dialect: str, table: Table, owner: str | BindParameter[str], epoch: int | BindParameter[int]
) -> ColumnElement[bool]:
    """The same, also for a statement that is made once and filled in each time."""
    return and_(
        table.c.lease_owner == owner,
        table.c.lease_epoch == epoch,
        or_(table.c.lease_until.is_(None), table.c.lease_until > _clock(dialect)),
    )


def fenced(
    connection: Connection, owner: Owner, kind: Kind, key: str, epoch: int, values: dict[str, Any]
) -> None:
    """Changes a row if its lease is held, in one statement.

    NotFoundError when there is no such row, LeaseLostError when the lease is not held.
    """
    leased = _TABLES[kind]
    changed = connection.execute(
        update(leased.table)
        .where(leased.at(key), held(connection, leased.table, owner, epoch))
        .values(values)
    )
    if not changed.rowcount:
        refuse(connection, kind, key)


def refuse(connection: Connection, kind: Kind, key: str) -> None:
    """Raises why a row could not be changed under its lease."""
    leased = _TABLES[kind]
    query = select(leased.table.c.lease_epoch).where(leased.at(key))
    if connection.execute(query).first() is None:
        raise NotFoundError(kind.value, key)
    raise LeaseLostError(kind, key)


def claim(connection: Connection, owner: Owner, limit: int) -> list[tuple[Kind, str, int]]:
    """Takes up to `limit` leases of each kind that nobody holds: (kind, key, epoch)."""
    found: list[tuple[Kind, str, int]] = []
    for kind, leased in _TABLES.items():
        free: ColumnElement[bool] = leased.table.c.lease_owner.is_(None)
        if owner.seconds is None:
            # Nobody else can be there: whatever name stands in the row is of one that has ended.
            free = or_(free, leased.table.c.lease_owner != owner.name)
        else:
            until = leased.table.c.lease_until
            free = or_(free, until.is_(None), until <= now(connection))
        # Two that look at once take different rows, and neither waits.
        rows = (
            select(*leased.columns)
            .where(leased.driven, free)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        change = (
            update(leased.table)
            .where(tuple_(*leased.columns).in_(rows))
            .values(taken_columns(connection, owner, leased.table))
        )
        found += _returned(connection, kind, leased, change)
    return found


def renew(connection: Connection, owner: Owner) -> list[tuple[Kind, str, int]]:
    """Renews all leases of the owner that have not ended: (kind, key, epoch)."""
    found: list[tuple[Kind, str, int]] = []
    for kind, leased in _TABLES.items():
        table = leased.table
        change = (
            update(table)
            .where(table.c.lease_owner == owner.name, table.c.lease_until > now(connection))
            .values(lease_until=_until(connection, owner))
        )
        found += _returned(connection, kind, leased, change)
    return found


def _returned(
    connection: Connection, kind: Kind, leased: _Leased, change: Update
) -> list[tuple[Kind, str, int]]:
    rows = connection.execute(change.returning(*leased.columns, leased.table.c.lease_epoch))
    return [(kind, SEPARATOR.join(row[:-1]), row[-1]) for row in rows]


def release(connection: Connection, owner: Owner, given: Iterable[tuple[Kind, str, int]]) -> None:
    """Lets leases go, so that another may take them at once."""
    for kind, key, epoch in given:
        leased = _TABLES[kind]
        connection.execute(
            update(leased.table)
            .where(
                leased.at(key),
                leased.table.c.lease_owner == owner.name,
                leased.table.c.lease_epoch == epoch,
            )
            .values(lease_owner=None, lease_until=None)
        )


def is_driven(connection: Connection, kind: Kind, key: str) -> bool:
    """Whether there is such a record, and it has not ended."""
    leased = _TABLES[kind]
    query = select(leased.table.c.lease_epoch).where(leased.at(key), leased.driven)
    return connection.execute(query).first() is not None


def add_wish(connection: Connection, wish: Wish) -> None:
    """See `LeaseStore.add_wish`."""
    present = now(connection)
    connection.execute(delete(wishes).where(wishes.c.at < present - _WISHES_KEPT_SECONDS))
    connection.execute(
        insert(wishes).values(
            id=wish.id, kind=wish.kind.value, key=wish.key, word=wish.word, body=wish.body,
            at=present,
        )
    )  # fmt: skip


def open_wishes(connection: Connection) -> list[Wish]:
    """See `LeaseStore.open_wishes`."""
    query = select(wishes).where(wishes.c.answer.is_(None)).order_by(wishes.c.at)
    return [
        Wish(row["id"], Kind(row["kind"]), row["key"], row["word"], row["body"])
        for row in connection.execute(query).mappings()
    ]


def answer_wish(connection: Connection, wish_id: str, answer: str) -> None:
    """See `LeaseStore.answer_wish`."""
    connection.execute(update(wishes).where(wishes.c.id == wish_id).values(answer=answer))


def wish_answer(connection: Connection, wish_id: str) -> str | None:
    """See `LeaseStore.wish_answer`."""
    query = select(wishes.c.answer).where(wishes.c.id == wish_id)
    return connection.execute(query).scalar_one_or_none()


def take_back_wish(connection: Connection, wish_id: str) -> str | None:
    """See `LeaseStore.take_back_wish`."""
    query = delete(wishes).where(wishes.c.id == wish_id).returning(wishes.c.answer)
    return connection.execute(query).scalar_one_or_none()


def holders(connection: Connection) -> list[tuple[str, float | None, int]]:
    """(owner, seconds until its last lease ends or None, leases) of what is driven, by kind."""
    found: list[tuple[str, float | None, int]] = []
    for leased in _TABLES.values():
        table = leased.table
        left = func.max(table.c.lease_until - now(connection))
        query = (
            select(table.c.lease_owner, left, func.count())
            .where(leased.driven, table.c.lease_owner.is_not(None))
            .group_by(table.c.lease_owner)
        )
        found += [(row[0], row[1], row[2]) for row in connection.execute(query)]
    return found


def duty_notes(connection: Connection, name: str) -> str:
    """See `LeaseStore.duty_notes`."""
    notes: str = connection.execute(
        select(duties.c.notes).where(duties.c.name == name)
    ).scalar_one()
    return notes


def save_duty_notes(
    connection: Connection, owner: Owner, name: str, notes: str, epoch: int
) -> None:
    """See `LeaseStore.save_duty_notes`."""
    fenced(connection, owner, Kind.DUTY, name, epoch, {"notes": notes})
