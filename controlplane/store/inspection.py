"""A look at a store from outside: nothing is changed, and no lock is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy import inspect as look_at
from sqlalchemy.exc import DBAPIError

from controlplane.store import failures, opening, sql_leases
from controlplane.store.opening import newest_version, open_place, prove_key, refuse_newer
from controlplane.store.place import DATABASE_FILE, Place
from controlplane.store.postgres import postgres_engine
from controlplane.store.schema import disks, fleet, instances, replacements, scrubs
from controlplane.store.sealing import load_sealer
from controlplane.store.sql_replacements import RUNNING
from stairlib.model.errors import DataError, NotFoundError, StairwellError


@dataclass(frozen=True, slots=True)
class Owner:
    """A control plane that holds leases. `seconds_left` is None where it has the store alone."""

    name: str
    leases: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `problem` is why a control plane would not start, empty if it would."""

    where: str
    version: str | None
    needed: str
    key: str
    problem: str
    counts: dict[str, int] = field(default_factory=dict)
    owners: tuple[Owner, ...] = ()


def inspect(place: Place) -> Report:
    """The report; a typed error when the store cannot even be looked at."""
    engine = _engine(place)
    try:
        with engine.connect() as connection:
            return _report(connection, place)
    except DBAPIError as error:
        meant = failures.meaning(error, place.words)
        if meant is None:
            meant = DataError(f"{place.words} cannot be read: {failures.text(error)}")
        raise meant from error
    finally:
        engine.dispose()


def migrate_place(place: Place) -> str:
    """Opens the store as a control plane would, and closes it; the version it had before."""
    try:
        before = inspect(place).version
    except NotFoundError:
        before = None
    open_place(place).close()
    return before or "nothing"


def _engine(place: Place) -> Engine:
    if place.shared:
        return postgres_engine(place.url)
    path = place.directory / DATABASE_FILE
    if not path.exists():
        raise NotFoundError(
            "store", str(path), f"there is no {path} yet; `controlplane run` makes it"
        )
    return sqlalchemy.create_engine(f"sqlite:///file:{Path(path).absolute()}?mode=ro&uri=true")


def _report(connection: Connection, place: Place) -> Report:
    version = opening.version(connection)
    needed = newest_version()
    problem, key = "", "none is stored"
    try:
        refuse_newer(version)
        check = opening.key_check(connection) if look_at(connection).has_table("disks") else None
        if check is not None:
            prove_key(load_sealer(place, may_make=False), check, place)
            key = "fits"
    except StairwellError as error:
        problem, key = error.message, "not known" if error.reason == "STORE_TOO_NEW" else "missing"
        if error.reason == "WRONG_SECRET_KEY":
            key = "another one"
    if version != needed:
        return Report(place.words, version, needed, key, problem)
    return Report(
        place.words, version, needed, key, problem, _counts(connection), _owners(connection)
    )


def _counts(connection: Connection) -> dict[str, int]:
    counts = {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in (instances, disks, fleet, replacements, scrubs)
    }
    running = select(func.count()).select_from(replacements).where(RUNNING)
    return {**counts, "running": connection.execute(running).scalar_one()}


def _owners(connection: Connection) -> tuple[Owner, ...]:
    leases: dict[str, int] = {}
    ends: dict[str, list[float | None]] = {}
    for name, left, count in sql_leases.holders(connection):
        leases[name] = leases.get(name, 0) + count
        ends.setdefault(name, []).append(left)
    return tuple(
        Owner(
            name,
            leases[name],
            None if None in ends[name] else max(each for each in ends[name] if each is not None),
        )
        for name in sorted(leases)
    )
