"""Placement: the reason for each downstairs that is not taken, and why one goes before another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from controlplane.core.fleet import AgentFacts, Health, Place
from controlplane.core.placement import Candidate, Vacancy, maker, named, no_spare, place
from controlplane.core.preflight import RegionFacts
from controlplane.core.records import Role
from stairlib.model.geometry import Geometry
from tests.unit.controlplane.core.records_made import GEOMETRY, TARGETS, VOLUME, region

OTHER = UUID(int=2)
STAY = (Place(TARGETS[0], "h0", "rack-a"), Place(TARGETS[1], "h1"))
FACTS = RegionFacts(UUID(int=9), GEOMETRY, False, False, None, None)


def vacancy(**changes: Any) -> Vacancy:
    made = Vacancy(VOLUME, region(), TARGETS[2], STAY, "", 1000)
    return replace(made, **changes)


def spare(address: str = "s:1", host: str = "h9", domain: str = "", **changes: Any) -> Candidate:
    facts = changes.pop("facts", FACTS)
    reserved = changes.pop("reserved_for", None)
    where = Place(address, host, domain, "", reserved)
    return replace(Candidate(where, Role.SPARE, facts=facts), **changes)


def facts(**changes: Any) -> RegionFacts:
    return replace(FACTS, **changes)


@pytest.mark.parametrize(
    ("candidate", "reason", "word"),
    [
        (spare(TARGETS[2]), "LEAVES", "is replaced"),
        (spare(TARGETS[0]), "MEMBER_OF_SET", "member of this set"),
        (spare(role=Role.MEMBER, volume_id=OTHER), "IN_USE", str(OTHER)),
        (spare(role=Role.RETIRED), "RETIRED", "create its region anew"),
        (spare(role=Role.LEFTOVER), "LEFTOVER", "create its region anew"),
        (spare(reserved_for=OTHER), "RESERVED", str(OTHER)),
        (spare(host="h7"), "DRAINED", "fleet drain-cancel h7"),
        (spare("s:7"), "DRAINED", "s:7 is drained"),
        (spare(host="h1"), "SAME_HOST", f"host h1 has a member of the set already: {TARGETS[1]}"),
        (spare(domain="rack-a"), "SAME_FAILURE_DOMAIN", "failure domain rack-a"),
        (spare(host="rack-a"), "SAME_FAILURE_DOMAIN", "failure domain rack-a"),
        (spare(domain="h1"), "SAME_FAILURE_DOMAIN", "failure domain h1"),
        (spare(facts=None, trouble="no answer in 3 s"), "AWAY", "no answer in 3 s"),
        (spare(health=Health.WRONG, trouble="2 extents"), "WRONG", "2 extents"),
        (spare(facts=facts(geometry=Geometry(512, 8, 4))), "GEOMETRY", "512-byte"),
        (spare(facts=facts(encrypted=True, cipher="aes-256-gcm")), "ENCRYPTION", "aes-256-gcm"),
        (spare(facts=facts(read_only=True)), "ACCESS", "read-only"),
        (spare(facts=facts(owner_id=OTHER)), "TOUCHED", str(OTHER)),
        (spare(facts=facts(owner_id=VOLUME)), "TOUCHED", "by this volume before"),
        (spare(facts=facts(written=True)), "TOUCHED", "something was written"),
        (spare(facts=facts(active_session_id=OTHER)), "IN_USE", "session"),
        (spare(free_bytes=999), "NO_SPACE", "999 bytes are free"),
    ],
)  # fmt: skip
def test_what_is_not_taken_and_why(candidate: Candidate, reason: str, word: str) -> None:
    found = place(vacancy(drained=frozenset({"h7", "s:7"})), [candidate], [])
    assert not found.chosen
    (only,) = found.rejections
    assert only.reason == reason
    assert word in only.detail


def test_the_cipher_has_to_be_the_members() -> None:
    key = "A" * 43 + "="
    wanted = vacancy(region=region(key=key), cipher="aes-256-gcm-siv")
    right = spare("s:1", facts=facts(encrypted=True, cipher="aes-256-gcm-siv"))
    wrong = spare("s:2", facts=facts(encrypted=True, cipher="aes-256-gcm"))
    found = place(wanted, [wrong, right], [])
    assert found.chosen == "s:1"
    assert [each.reason for each in found.rejections] == ["CIPHER"]
    assert key not in repr(found)


def test_a_read_only_set_takes_a_clone_and_not_a_blank_region() -> None:
    wanted = vacancy(region=region(read_only=True))
    blank = spare("s:1", facts=facts(read_only=True))
    clone = spare("s:2", facts=facts(read_only=True, written=True, owner_id=VOLUME))
    found = place(wanted, [blank, clone], [])
    assert found.chosen == "s:2"
    assert [each.reason for each in found.rejections] == ["BLANK"]


@pytest.mark.parametrize(
    ("best", "other", "why"),
    [
        (spare("z:1", reserved_for=VOLUME, free_bytes=2000), spare("a:1"), "is set aside"),
        (spare("z:1", "h9"), spare("a:1", "h8", free_bytes=2000), "room for the whole region"),
        (spare("z:1", "h8"), spare("a:1", "h9"), "failure domain with fewer members (h8)"),
        (spare("z:1", "h6", "rack-c"), spare("a:1", "h7", "rack-c"), "host with fewer members"),
        (spare("z:1", free_bytes=1 << 50), spare("a:1", free_bytes=1 << 49), "more free space"),
        (spare("a:1"), spare("z:1"), "comes first by address"),
    ],
)
def test_why_one_goes_before_another(best: Candidate, other: Candidate, why: str) -> None:
    load = [Place("x:1", "h9"), Place("x:2", "h7")]
    for order in ([best, other], [other, best]):
        found = place(vacancy(), order, load)
        assert found.chosen == best.place.address
        (only,) = found.rejections
        assert only.reason == "NOT_NEEDED"
        assert why in only.detail


def test_one_that_is_named_is_the_callers_and_is_warned_of() -> None:
    found = named(vacancy(), spare(host="h1"))
    assert (found.chosen, found.named, found.rejections) == ("s:1", True, ())
    assert "host h1" in found.warnings[0]


FREE = AgentFacts("g", "", 1 << 50, 5)


@pytest.mark.parametrize(
    ("where", "said", "changes", "reason"),
    [
        (Place("g:1", "h1"), FREE, {}, "SAME_HOST"),
        (Place("g:1", "g", "rack-a"), FREE, {}, "SAME_FAILURE_DOMAIN"),
        (Place("g:1", "h7"), FREE, {"drained": frozenset({"h7"})}, "DRAINED"),
        (Place("g:1", "g"), "no answer", {}, "AGENT_AWAY"),
        (Place("g:1", "g"), replace(FREE, ports_free=0), {}, "NO_PORTS"),
        (Place("g:1", "g"), replace(FREE, free_bytes=999), {}, "NO_SPACE"),
        (Place("g:1", "g"), FREE, {"region": region(read_only=True)}, "READ_ONLY_SET"),
        (Place("g:1", "g"), FREE, {"cipher": None}, "CIPHER"),
    ],
)
def test_which_agent_makes_none(
    where: Place, said: AgentFacts | str, changes: Any, reason: str
) -> None:
    found = maker(vacancy(**changes), [(where, said)], [])
    assert not found.made_by
    assert [each.reason for each in found.rejections] == [reason]
    assert found.rejections[0].detail


def test_which_agent_makes_it() -> None:
    small = replace(FREE, free_bytes=GEOMETRY.total_bytes - 1)
    agents = [
        (Place("a:1", "g1"), small), (Place("b:1", "g2"), FREE), (Place("c:1", "g3"), FREE),
        (Place("d:1", "h1"), FREE),
    ]  # fmt: skip
    load = [Place("x:1", "g2")]
    found = maker(vacancy(), agents, load)
    assert found.made_by == "c:1"
    assert [each.address for each in found.rejections] == ["d:1"]
    assert maker(vacancy(), reversed(agents), load) == found


def test_the_refusal_names_each() -> None:
    found = place(vacancy(), [spare("s:1", "h1"), spare("s:2", facts=None)], [])
    error = no_spare("block2", "sub_volumes[0]", 2, found)
    for word in ("slot 2", "'block2'", "s:1: host h1", "s:2: it does not answer", "fleet register"):
        assert word in error.message
    assert error.metadata["rejected[s:1]"] == "SAME_HOST"
    assert "there is no spare" in no_spare("b", "", 0, place(vacancy(), [], [])).message
