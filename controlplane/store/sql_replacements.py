"""The statements about replacements, spans and answers. Each function runs in one transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from controlplane.core.leases import Kind
from controlplane.core.records import DownstairsRecord, Role, region_at
from controlplane.core.replacement import Replacement, State, Transition
from controlplane.core.scrub import Scrub
from controlplane.store import rows, sql_disks, sql_leases
from controlplane.store.base import StoredAnswer, StoredSpan
from controlplane.store.schema import replacements, requests, spans, transitions
from controlplane.store.sealing import Sealer
from controlplane.store.sql_leases import Owner
from stairlib.model.errors import ConflictError, NotFoundError

# Traces of this many newest replacements are kept: some MiB of spans.
TRACES_MAX = 500
# Values in one list of a statement; databases have limits of their own.
_IN_MAX = 500
# Request ids remembered; a repeat after this many later requests is a new request.
ANSWERS_MAX = 10_000

# The rows of replacements that have not ended.
RUNNING = replacements.c.state.not_in([state.value for state in State if state.ended])


def begin(connection: Connection, sealer: Sealer, owner: Owner, record: Replacement) -> None:
    """See `ReplacementStore.begin_replacement`."""
    assert record.state is State.APPLY, "what was not recorded is not stored"
    sql_disks.record_construction(
        connection, sealer, record.disk_key, record.original, record.replacement
    )
    refuse_running(connection, record)
    region = region_at(record.replacement, record.region_path)
    if not region.options.read_only:
        known = sql_disks.downstairs(connection, record.new_target, lock=True)
        sql_disks.refuse_member(
            connection, known, record.volume_id, record.new_target, f"vcr.{record.path}"
        )
        sql_disks.put_member(
            connection,
            known,
            DownstairsRecord(
                address=record.new_target,
                role=Role.MEMBER,
                region_id=known.region_id if known else None,
                volume_id=record.volume_id,
                geometry=region.geometry,
                encrypted=region.encrypted,
            ),
        )
    row = rows.replacement_row(record, sealer) | sql_leases.columns(connection, owner)
    try:
        connection.execute(insert(replacements).values(row))
    except IntegrityError as error:
        raise _another_runs(record) from error
    _add_log(connection, record)
    _drop_old_traces(connection)


def refuse_running(connection: Connection, record: Replacement | Scrub) -> None:
    """ConflictError while a replacement of the record's disk is running.

    The disk has to be locked; then none begins before the transaction ends.
    """
    query = select(replacements.c.id, replacements.c.state).where(
        replacements.c.disk_key == str(record.disk_key), RUNNING
    )
    running = connection.execute(query).first()
    if running is not None:
        raise ConflictError(
            f"replacement {running.id} of disk {record.disk!r} is running, in state"
            f" {running.state}; wait for its end",
            reason="REPLACEMENT_RUNNING",
            replacement=running.id,
            state=running.state,
            disk=record.disk,
        )


def _another_runs(record: Replacement) -> ConflictError:
    """What the unique key says, should a rule above have let a second one through."""
    return ConflictError(
        f"another replacement of disk {record.disk!r} is running",
        reason="REPLACEMENT_RUNNING",
        disk=record.disk,
    )


def retry(connection: Connection, sealer: Sealer, owner: Owner, record: Replacement) -> int:
    """See `ReplacementStore.retry_replacement`; the epoch of the lease."""
    sql_disks.require_recorded(connection, sealer, record.disk_key, record.recorded)
    refuse_running(connection, record)
    before = _before(connection, record)
    taken = sql_leases.taken_columns(connection, owner, replacements)
    try:
        epoch = connection.execute(
            update(replacements)
            .where(replacements.c.id == str(record.id), ~RUNNING)
            .values(rows.replacement_state_columns(record) | taken)
            .returning(replacements.c.lease_epoch)
        ).scalar_one_or_none()
    except IntegrityError as error:
        raise _another_runs(record) from error
    if epoch is None:
        raise NotFoundError("replacement", str(record.id))
    _follow(connection, sealer, before, record)
    return int(epoch)


def save(
    connection: Connection, sealer: Sealer, owner: Owner, record: Replacement, epoch: int
) -> None:
    """See `ReplacementStore.save_replacement`."""
    before = _before(connection, record)
    values = rows.replacement_state_columns(record)
    sql_leases.fenced(connection, owner, Kind.REPLACEMENT, str(record.id), epoch, values)
    _follow(connection, sealer, before, record)


def _before(connection: Connection, record: Replacement) -> Replacement:
    """The record in the state that is stored, with its row locked."""
    query = select(replacements.c.state, replacements.c.failed_in).where(
        replacements.c.id == str(record.id)
    )
    row = connection.execute(query.with_for_update()).first()
    if row is None:
        raise NotFoundError("replacement", str(record.id))
    failed_in = State(row.failed_in) if row.failed_in else None
    return replace(record, state=State(row.state), failed_in=failed_in)


def _follow(
    connection: Connection, sealer: Sealer, before: Replacement, record: Replacement
) -> None:
    """What changes with a replacement's state: the recorded request, its target's role, its log."""
    if before.undone is not record.undone:
        sql_disks.record_construction(
            connection, sealer, record.disk_key, before.recorded, record.recorded
        )
    if record.state is State.CANCELLED:
        _give_back(connection, record)
    _add_log(connection, record)


@cache
def _progress_statement(dialect: str) -> Update:
    """Made once: hundreds of looks a second would spend their time on making it."""
    held = sql_leases.held_by(dialect, replacements, bindparam("owner"), bindparam("epoch"))
    return (
        update(replacements)
        .where(replacements.c.id == bindparam("this"), held)
        .values({name: bindparam(name) for name in rows.PROGRESS_COLUMNS})
    )


def save_progress(connection: Connection, owner: Owner, record: Replacement, epoch: int) -> None:
    """See `ReplacementStore.save_progress`."""
    key = str(record.id)
    filled = {**rows.progress_columns(record), "this": key, "owner": owner.name, "epoch": epoch}
    if not connection.execute(_progress_statement(connection.dialect.name), filled).rowcount:
        sql_leases.refuse(connection, Kind.REPLACEMENT, key)


def _give_back(connection: Connection, record: Replacement) -> None:
    """The new target of one that was undone is what it was; a leftover, if it was let in."""
    if region_at(record.replacement, record.region_path).options.read_only:
        return
    known = sql_disks.downstairs(connection, record.new_target, lock=True)
    if known is None or known.volume_id != record.volume_id:
        return
    was = Role(record.target_was) if record.target_was else Role.SPARE
    if was is Role.SPARE and record.touched:
        was = Role.LEFTOVER
    volume = None if was is Role.SPARE else known.volume_id
    sql_disks.put_member(connection, known, replace(known, role=was, volume_id=volume))


def _add_log(connection: Connection, record: Replacement) -> None:
    """Adds the log lines that are not there yet."""
    query = select(func.max(transitions.c.number)).where(
        transitions.c.replacement_id == str(record.id)
    )
    last = connection.execute(query).scalar()
    added = [
        rows.transition_row(record, each)
        for each in record.transitions
        if last is None or each.number > last
    ]
    if added:
        connection.execute(insert(transitions), added)


def _drop_old_traces(connection: Connection) -> None:
    newest = select(func.max(replacements.c.number)).scalar_subquery()
    old = select(replacements.c.trace_id).where(replacements.c.number <= newest - TRACES_MAX)
    connection.execute(delete(spans).where(spans.c.trace_id.in_(old)))


def retire_member(connection: Connection, owner: Owner, record: Replacement, epoch: int) -> None:
    """See `ReplacementStore.retire_member`."""
    # Changes nothing, and holds the row: nobody takes the lease before this has ended.
    same = {"updated_at": replacements.c.updated_at}
    sql_leases.fenced(connection, owner, Kind.REPLACEMENT, str(record.id), epoch, same)
    if region_at(record.replacement, record.region_path).options.read_only:
        # Others may read from the old one, and the new one is nobody's own.
        return
    volumes = [record.volume_id]
    sql_disks.set_role(connection, record.old_target, Role.RETIRED, volumes)
    sql_disks.set_role(connection, record.new_target, Role.MEMBER, volumes)


def _load(connection: Connection, sealer: Sealer, row: rows.Row) -> Replacement:
    query = (
        select(transitions)
        .where(transitions.c.replacement_id == row["id"])
        .order_by(transitions.c.number)
    )
    log: Sequence[Any] = connection.execute(query).mappings().all()
    return rows.replacement_of(row, log, sealer)


def log_after(
    connection: Connection, replacement_id: UUID, after: int, limit: int
) -> list[Transition]:
    """See `ReplacementStore.transitions`."""
    query = (
        select(transitions)
        .where(transitions.c.replacement_id == str(replacement_id), transitions.c.number > after)
        .order_by(transitions.c.number)
        .limit(limit)
    )
    found: Sequence[Any] = connection.execute(query).mappings().all()
    return [rows.transition_of(row) for row in found]


def _first(
    connection: Connection, sealer: Sealer, condition: ColumnElement[bool]
) -> Replacement | None:
    query = select(replacements).where(condition).order_by(replacements.c.number.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return _load(connection, sealer, row) if row is not None else None


def by_id(connection: Connection, sealer: Sealer, replacement_id: UUID) -> Replacement:
    """See `ReplacementStore.replacement`."""
    found = _first(connection, sealer, replacements.c.id == str(replacement_id))
    if found is None:
        raise NotFoundError("replacement", str(replacement_id))
    return found


def of_trace(connection: Connection, sealer: Sealer, trace_id: str) -> Replacement | None:
    """See `ReplacementStore.replacement_of_trace`."""
    return _first(connection, sealer, replacements.c.trace_id == trace_id)


def newest(connection: Connection, sealer: Sealer, disk_key: UUID) -> Replacement | None:
    """See `ReplacementStore.newest_replacement`."""
    of_disk = replacements.c.disk_key == str(disk_key)
    kept = replacements.c.state != State.CANCELLED.value
    return _first(connection, sealer, of_disk & kept)


def running(connection: Connection, sealer: Sealer) -> list[Replacement]:
    """See `ReplacementStore.running_replacements`."""
    query = select(replacements).where(RUNNING).order_by(replacements.c.number)
    found = connection.execute(query).mappings().all()
    return [_load(connection, sealer, row) for row in found]


def listed(
    connection: Connection, sealer: Sealer, disk: str, before: int | None, limit: int
) -> list[tuple[int, Replacement]]:
    """See `ReplacementStore.list_replacements`."""
    query = select(replacements).order_by(replacements.c.number.desc()).limit(limit)
    if disk:
        query = query.where(
            (replacements.c.disk == disk) | (replacements.c.volume_id == disk.lower())
        )
    if before is not None:
        query = query.where(replacements.c.number < before)
    found = connection.execute(query).mappings().all()
    return [(row["number"], _load(connection, sealer, row)) for row in found]


def save_spans(connection: Connection, added: Iterable[StoredSpan]) -> None:
    """See `TraceStore.save_spans`."""
    for trace_id, group in _by_trace(added).items():
        ids = list(group)
        for first in range(0, len(ids), _IN_MAX):
            wanted = ids[first : first + _IN_MAX]
            same = (spans.c.trace_id == trace_id) & spans.c.span_id.in_(wanted)
            query = select(spans.c.span_id, spans.c.ended).where(same)
            known = {row.span_id: row.ended for row in connection.execute(query)}
            fresh = [group[each] for each in wanted if not known.get(each, False)]
            again = [span.span_id for span in fresh if span.span_id in known]
            if again:
                same = (spans.c.trace_id == trace_id) & spans.c.span_id.in_(again)
                # One whose end another control plane has stored meanwhile stays: the insert then
                # meets it, and the next run of the transaction finds it ended.
                connection.execute(delete(spans).where(same, ~spans.c.ended))
            if fresh:
                connection.execute(insert(spans), [dataclasses.asdict(span) for span in fresh])


def _by_trace(added: Iterable[StoredSpan]) -> dict[str, dict[str, StoredSpan]]:
    groups: dict[str, dict[str, StoredSpan]] = {}
    for span in added:
        groups.setdefault(span.trace_id, {})[span.span_id] = span
    return groups


def load_spans(connection: Connection, trace_id: str) -> list[StoredSpan]:
    """See `TraceStore.spans`."""
    query = select(spans).where(spans.c.trace_id == trace_id)
    return [
        StoredSpan(row["trace_id"], row["span_id"], row["body"], row["ended"])
        for row in connection.execute(query).mappings()
    ]


def answer(connection: Connection, method: str, request_id: str) -> StoredAnswer | None:
    """See `TraceStore.answer`."""
    query = select(requests).where(requests.c.method == method, requests.c.request_id == request_id)
    row = connection.execute(query).mappings().first()
    return StoredAnswer(row["digest"], row["answer"]) if row is not None else None


def save_answer(
    connection: Connection, method: str, request_id: str, given: StoredAnswer, at: float
) -> StoredAnswer:
    """See `TraceStore.save_answer`."""
    known = answer(connection, method, request_id)
    if known is not None:
        return known
    connection.execute(
        insert(requests).values(
            method=method, request_id=request_id, digest=given.digest, answer=given.body, at=at
        )
    )
    oldest_kept = (
        select(requests.c.at).order_by(requests.c.at.desc()).offset(ANSWERS_MAX).limit(1)
    ).scalar_subquery()
    connection.execute(delete(requests).where(requests.c.at <= oldest_kept))
    return given
