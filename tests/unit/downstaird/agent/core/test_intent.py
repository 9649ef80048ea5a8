"""What a host is to have: the table of a region, idempotent requests, ports, budget, the file."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstaird.agent.core.intent import (
    DESTROYED_KEPT,
    Intent,
    Limits,
    PortRange,
    Wanted,
    already_there,
    check_room,
    free_ports,
    moved,
    port_range,
    requested,
    snapshot_asked,
    snapshot_moved,
    snapshot_unasked,
)
from downstaird.agent.core.intent_file import decode, encode
from downstaird.agent.core.region_states import REGION, RegionEvent, RegionState
from downstaird.agent.core.snapshot_wishes import SNAPSHOT, WishEvent, wish_named
from stairlib.model.errors import (
    AlreadyExistsError,
    DataError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    StateError,
)
from stairlib.model.geometry import Geometry
from stairlib.model.state_table import IllegalMoveError

SHAPE = Geometry(4096, 16, 4)
PORTS = PortRange(8810, 8815)
E = RegionEvent
S = RegionState


def wanted(number: int = 1, **changes: object) -> Wanted:
    fields = {"id": uuid.UUID(int=number), "geometry": SHAPE, "cipher": "", "source": ""}
    return Wanted(**{**fields, **changes})  # type: ignore[arg-type]


def asked(intent: Intent, number: int) -> Intent:
    return requested(intent, wanted(number), next(free_ports(intent, PORTS)))


# ---- the table


@given(st.sampled_from(S), st.lists(st.sampled_from(E), max_size=12))
def test_every_sequence_moves_by_the_table_and_a_destruction_always_leads_out(
    state: S, events: Sequence[E]
) -> None:
    tombstoned = state in (S.TOMBSTONED, S.DESTROYED)
    for event in events:
        if not REGION.allows(state, event):
            with pytest.raises(IllegalMoveError):
                REGION.after(state, event)
            continue
        state = REGION.after(state, event)
        tombstoned |= event is E.DESTROY_ASKED
        # Whatever a creation comes to after that, the region does not come back.
        assert not tombstoned or state in (S.TOMBSTONED, S.DESTROYED)
    if state is not S.DESTROYED:
        assert REGION.after(REGION.after(state, E.DESTROY_ASKED), E.DESTROY_DONE) is S.DESTROYED


def test_a_created_region_takes_no_word_of_a_creation() -> None:
    for event in (E.CREATE_BEGUN, E.CREATE_DONE, E.CREATE_FAILED, E.DESTROY_DONE):
        assert not REGION.allows(S.CREATED, event)


# ---- asking twice, and for something else


def test_the_same_again_is_the_same_record() -> None:
    intent = asked(Intent(), 1)
    assert already_there(intent, wanted(1)) == intent.one(uuid.UUID(int=1))
    assert already_there(intent, wanted(2)) is None


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("geometry", Geometry(4096, 16, 5), "5 extents"),
        ("cipher", "aes-256-gcm", "aes-256-gcm"),
        ("source", "host:8810", "host:8810"),
    ],
)
def test_another_region_of_the_same_id_is_refused_by_field(
    field: str, value: object, shown: str
) -> None:
    with pytest.raises(AlreadyExistsError, match=shown) as failed:
        already_there(asked(Intent(), 1), wanted(1, **{field: value}))
    assert failed.value.reason == "REGION_DIFFERS"
    assert failed.value.metadata["field"] == field


def test_an_id_is_used_once() -> None:
    one = uuid.UUID(int=1)
    going = moved(asked(Intent(), 1), one, E.DESTROY_ASKED)
    for intent in (going, moved(going, one, E.DESTROY_DONE)):
        with pytest.raises(StateError) as failed:
            already_there(intent, wanted(1))
        assert failed.value.reason == "REGION_DESTROYED"


def test_nobody_knows_a_region_that_was_never_asked_for() -> None:
    with pytest.raises(NotFoundError) as failed:
        moved(Intent(), uuid.UUID(int=9), E.DESTROY_ASKED)
    assert failed.value.reason == "REGION_NOT_FOUND"


def test_a_failed_region_says_why_and_keeps_its_port() -> None:
    one = uuid.UUID(int=1)
    intent = moved(asked(Intent(), 1), one, E.CREATE_BEGUN)
    intent = moved(intent, one, E.CREATE_FAILED, "x" * 5000)
    assert intent.one(one).reason == "x" * 1024
    assert intent.one(one).port == 8810
    gone = moved(moved(intent, one, E.DESTROY_ASKED), one, E.DESTROY_DONE)
    assert gone.one(one).port == 0


# ---- ports and room


def test_ports_are_used_up_and_come_back_the_oldest_first() -> None:
    intent = asked(asked(asked(Intent(), 1), 2), 3)
    assert [record.port for record in intent.present()] == [8810, 8812, 8814]
    assert not list(free_ports(intent, PORTS))
    for number in (3, 1):
        intent = moved(intent, uuid.UUID(int=number), E.DESTROY_ASKED)
        assert number == 3 or list(free_ports(intent, PORTS)) == [8814]
        intent = moved(intent, uuid.UUID(int=number), E.DESTROY_DONE)
    assert list(free_ports(intent, PORTS)) == [8810, 8814]
    assert next(free_ports(asked(intent, 4), PORTS)) == 8814


def test_a_shifted_range_gives_no_port_that_is_half_taken() -> None:
    intent = asked(Intent(), 1)
    assert list(free_ports(intent, PortRange(8809, 8814))) == [8813]
    assert list(free_ports(intent, PortRange(8811, 8814))) == [8813]


@pytest.mark.parametrize("text", ["", "8810", "a-b", "0-5", "10-9", "8810-8810", "1-99999", "-5"])
def test_what_is_no_range_of_ports_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="--ports"):
        port_range(text)


def test_a_range_holds_pairs() -> None:
    assert list(port_range("8810-8814").ports()) == [8810, 8812]


def test_a_region_over_the_budget_is_refused_and_one_that_fills_it_is_not() -> None:
    size = SHAPE.total_bytes
    intent = asked(Intent(), 1)
    check_room(intent, wanted(2), Limits(PORTS, 2 * size))
    check_room(intent, wanted(2), Limits(PORTS))
    with pytest.raises(LimitError, match="--capacity") as failed:
        check_room(intent, wanted(2), Limits(PORTS, 2 * size - 1))
    assert failed.value.reason == "OVER_CAPACITY"
    assert failed.value.metadata["provisioned_bytes"] == str(size)


def test_records_of_regions_that_are_gone_are_bounded() -> None:
    first, last = uuid.UUID(int=1), uuid.UUID(int=99_999)
    sample = gone(asked(Intent(), 1), first).one(first)
    many = {
        uuid.UUID(int=number): replace(sample, wanted=wanted(number), number=number)
        for number in range(1, DESTROYED_KEPT + 1)
    }
    intent = Intent(MappingProxyType(many), asked=DESTROYED_KEPT)
    intent = gone(asked(intent, last.int), last)
    assert len(intent.records) == DESTROYED_KEPT
    assert first not in intent.records
    assert last in intent.records


def gone(intent: Intent, region: uuid.UUID) -> Intent:
    return moved(moved(intent, region, E.DESTROY_ASKED), region, E.DESTROY_DONE)


# ---- the file


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """What some requests and events make of an empty host."""
    intent = Intent()
    for _ in range(draw(st.integers(0, 12))):
        number = draw(st.integers(1, 4))
        one = uuid.UUID(int=number)
        if one not in intent.records:
            ports = list(free_ports(intent, PORTS))
            if ports:
                source = draw(st.sampled_from(["", "host:8810"]))
                intent = requested(intent, wanted(number, source=source), ports[0])
            continue
        if intent.one(one).state is S.CREATED and not intent.one(one).wanted.source:
            intent = draw(snapshots_of(intent, one))
        event = draw(st.sampled_from(E))
        if REGION.allows(intent.one(one).state, event):
            intent = moved(intent, one, event, draw(st.text(max_size=20)))
    return intent


@st.composite
def snapshots_of(draw: st.DrawFn, intent: Intent, region: uuid.UUID) -> Intent:
    """The same, and what was asked about a snapshot, and became of it."""
    name = draw(st.sampled_from("ab"))
    if draw(st.booleans()):
        return snapshot_unasked(intent, region, name)
    found = wish_named(intent.one(region).snapshots, name)
    if found is None:
        return snapshot_asked(intent, region, name)
    event = draw(st.sampled_from(WishEvent))
    if not SNAPSHOT.allows(found.state, event):
        return intent
    numbers = st.integers(0, 2**64 - 1)
    flush, reason = (draw(numbers), draw(numbers)), draw(st.text(max_size=20))
    return snapshot_moved(intent, region, name, event, flush=flush, reason=reason)


@given(intents())
def test_what_is_stored_is_read_again(intent: Intent) -> None:
    read = decode(encode(intent), "agent.intent")
    assert dict(read.records) == dict(intent.records)
    assert (read.asked, read.last_port) == (intent.asked, intent.last_port)
    ports = [record.port for record in intent.present()]
    assert len(ports) == len(set(ports))


@given(intents(), st.data())
def test_damage_anywhere_is_noticed(intent: Intent, data: st.DataObject) -> None:
    raw = bytearray(encode(intent))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataError) as failed:
        decode(bytes(raw), "agent.intent")
    assert failed.value.reason in ("INTENT_DAMAGED", "INTENT_VERSION")


@given(intents(), st.data())
def test_a_file_that_was_cut_off_is_refused(intent: Intent, data: st.DataObject) -> None:
    raw = encode(intent)
    with pytest.raises(DataError, match="previous"):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))], "agent.intent")


def test_a_newer_file_is_told_from_a_damaged_one() -> None:
    raw = encode(Intent()).replace(b"intent 1", b"intent 2", 1)
    with pytest.raises(DataError, match="run the newer") as failed:
        decode(raw, "agent.intent")
    assert failed.value.reason == "INTENT_VERSION"
