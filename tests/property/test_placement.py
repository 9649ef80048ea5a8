"""Placement against an oracle that says the rules once more, plainly, and automation's bounds."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from controlplane.core import automation
from controlplane.core.automation import DiskSeen, MemberSeen, Presence
from controlplane.core.fleet import FaultedMember, FleetPolicy, Health, Place
from controlplane.core.placement import Candidate, Vacancy, place
from controlplane.core.preflight import RegionFacts
from controlplane.core.records import Role
from controlplane.core.replacement import State
from stairlib.model.construction import RegionOptions, RegionSpec
from stairlib.model.geometry import Geometry
from tests.unit.controlplane.core import records_made as made

OURS, OTHER = UUID(int=1), UUID(int=2)
RIGHT, WRONG = Geometry(4096, 16, 8), Geometry(4096, 16, 9)
hosts = st.sampled_from(["h0", "h1", "h2", "h3", "h4"])
domains = st.sampled_from(["", "rack-a", "rack-b"])


@st.composite
def places(draw: st.DrawFn, address: str) -> Place:
    reserved = draw(st.sampled_from([None, None, None, OURS, OTHER]))
    return Place(address, draw(hosts), draw(domains), "", reserved)


@st.composite
def candidates(draw: st.DrawFn, address: str) -> Candidate:
    """Mostly good, each with now and then one thing wrong."""

    def seldom(good: object, *bad: object) -> st.SearchStrategy:
        return st.sampled_from([good] * 6 + list(bad))

    facts = RegionFacts(
        region_id=UUID(int=int(address[2:]) + 100),
        geometry=draw(seldom(RIGHT, WRONG)),
        encrypted=draw(seldom(False, True)),
        read_only=draw(seldom(False, True)),
        owner_id=draw(seldom(None, OTHER, OURS)),
        active_session_id=draw(seldom(None, UUID(int=9))),
        written=draw(seldom(False, True)),
    )
    return Candidate(
        place=draw(places(address)),
        role=draw(seldom(Role.SPARE, Role.MEMBER, Role.RETIRED)),
        volume_id=OTHER,
        facts=draw(seldom(facts, None)),
        health=draw(seldom(Health.ANSWERS, Health.WRONG)),
        trouble="it is not what was recorded",
        free_bytes=draw(st.sampled_from([None, 0, 99, 100, RIGHT.total_bytes, 1 << 40])),
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[Vacancy, list[Candidate], list[Place]]:
    stay = (draw(places("m:1")), draw(places("m:2")))
    region = RegionSpec(RIGHT, RegionOptions(id=OURS, targets=("m:3", "m:1", "m:2")), 1)
    drained = frozenset(draw(st.sets(st.sampled_from(["h3", "c:2"]))))
    vacancy = Vacancy(OURS, region, "m:3", stay, "", 100, drained)
    number = draw(st.integers(0, 8))
    found = [draw(candidates(f"c:{each}")) for each in range(number)]
    load = draw(st.lists(places("x:1"), max_size=6))
    return vacancy, found, load


def may(vacancy: Vacancy, one: Candidate) -> bool:
    """The rules, as a checklist."""
    facts, here = one.facts, one.place
    return (
        one.role is Role.SPARE
        and facts is not None
        and one.health is not Health.WRONG
        and facts.geometry == RIGHT
        and not facts.encrypted
        and not facts.read_only
        and facts.owner_id is None
        and not facts.written
        and facts.active_session_id is None
        and here.reserved_for in (None, OURS)
        and here.host not in vacancy.drained
        and here.address not in vacancy.drained
        and all(here.host != other.host for other in vacancy.stay)
        and all(
            (here.failure_domain or here.host) != (other.failure_domain or other.host)
            for other in vacancy.stay
        )
        and (one.free_bytes is None or one.free_bytes >= vacancy.stored_bytes)
    )


def better(one: Candidate, two: Candidate, load: list[Place]) -> bool:
    """Whether the first goes before the second: rule by rule."""

    def crowd(name: str, value: str) -> int:
        return sum(1 for each in load if getattr(each, name) == value)

    for a, b in (
        (one.place.reserved_for == OURS, two.place.reserved_for == OURS),
        (roomy(one), roomy(two)),
    ):
        if a != b:
            return a
    for name in ("domain", "host"):
        a, b = crowd(name, getattr(one.place, name)), crowd(name, getattr(two.place, name))
        if a != b:
            return a < b
    if (one.free_bytes or 0) != (two.free_bytes or 0):
        return (one.free_bytes or 0) > (two.free_bytes or 0)
    return one.place.address < two.place.address


def roomy(one: Candidate) -> bool:
    return one.free_bytes is None or one.free_bytes >= RIGHT.total_bytes


@given(situations(), st.randoms())
def test_placement_is_what_the_rules_say(situation, random) -> None:
    vacancy, found, load = situation
    chosen = place(vacancy, found, load)
    allowed = [each for each in found if may(vacancy, each)]
    if not allowed:
        assert chosen.chosen == ""
    else:
        best = allowed[0]
        for each in allowed[1:]:
            if better(each, best, load):
                best = each
        assert chosen.chosen == best.place.address
    rejected = {each.address: each.reason for each in chosen.rejections}
    assert set(rejected) | {chosen.chosen} - {""} == {each.place.address for each in found}
    assert chosen.chosen not in rejected
    fits = {each.place.address for each in allowed}
    for each in chosen.rejections:
        assert each.detail
        assert (each.reason == "NOT_NEEDED") == (each.address in fits)
    random.shuffle(found)
    assert place(vacancy, found, load) == chosen, "whatever the order they come in"


# ----- automation


@st.composite
def fleets(draw: st.DrawFn) -> list[DiskSeen]:
    disks = []
    for number in range(draw(st.integers(0, 4))):
        members = tuple(
            MemberSeen(
                "r",
                slot,
                f"t:{number}{slot}",
                draw(st.sampled_from(list(Presence))),
                sourced=draw(st.booleans()),
            )
            for slot in range(3)
        )
        heard = draw(st.booleans()) or draw(st.booleans())
        disks.append(DiskSeen(UUID(int=number), f"d{number}", members if heard else None))
    return disks


@given(
    st.lists(fleets(), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from([0.0, 10.0, 25.0]),
)
def test_automation_keeps_its_bounds(rounds, automatic, maintenance, running, most, grace) -> None:
    policy = FleetPolicy(automatic, grace, maintenance, most)
    known: list[FaultedMember] = []
    gone_since: dict[tuple[UUID, int], float] = {}
    for number, seen in enumerate(rounds):
        now = 10.0 * number
        known = automation.observe(known, seen, now)
        decision = automation.decide(known, seen, policy, running, {}, now)
        disks = {each.disk_key: each for each in seen}
        # The oracle's own account: since when each was gone, forgotten only when it served.
        for disk in seen:
            for member in disk.members or ():
                key = (disk.disk_key, member.slot)
                if member.presence is Presence.SERVES:
                    gone_since.pop(key, None)
                elif member.presence is Presence.GONE:
                    gone_since.setdefault(key, now)
        gone_since = {key: at for key, at in gone_since.items() if key[0] in disks}
        assert {(each.disk_key, each.slot): each.since for each in decision.faulted} == gone_since
        begin = decision.begin
        if begin is not None:
            assert automatic
            assert not maintenance
            assert running < most
            assert now - begin.since >= grace
            members = disks[begin.disk_key].members
            assert members is not None
            assert members[begin.slot].presence is Presence.GONE
            assert members[begin.slot].sourced
        for each in decision.faulted:
            assert (each == begin) == (not each.waits_for)
        known = list(decision.faulted)


def test_a_member_under_another_address_begins_anew() -> None:
    seen = [DiskSeen(UUID(int=0), "d", (MemberSeen("r", 0, "a:1", Presence.GONE),))]
    known = automation.observe([], seen, 5.0)
    moved = [replace(seen[0], members=(MemberSeen("r", 0, "b:1", Presence.GONE),))]
    (one,) = automation.observe(known, moved, 9.0)
    assert (one.target, one.since) == ("b:1", 9.0)


def test_an_automatic_replacement_that_was_not_carried_out_is_not_begun_again() -> None:
    policy = FleetPolicy(automatic=True, grace_seconds=0)
    last = made.replacement(asked_by=automation.ASKED_BY, created_at=50.0)
    for state, target, since, held in (
        (State.CANCELLED, last.old_target, 40.0, True),
        (State.CANCELLED, last.old_target, 60.0, False),
        (State.FAILED, last.new_target, 60.0, True),
        (State.FAILED, last.old_target, 40.0, True),
        (State.FAILED, "x:1", 60.0, False),
        (State.DONE, last.new_target, 60.0, False),
    ):
        gone = MemberSeen(last.region_path, last.slot, target, Presence.GONE)
        seen = [DiskSeen(UUID(int=0), "d", (gone,), last=replace(last, state=state))]
        known = automation.observe([], seen, since)
        decision = automation.decide(known, seen, policy, 0, {}, 99.0)
        assert (decision.begin is None) == held, (state, since)
        assert ("operator" in decision.faulted[0].waits_for) == held


def test_what_a_member_waits_for() -> None:
    """Each hold by itself, at its edge."""
    policy = FleetPolicy(automatic=True, grace_seconds=10.0, at_once_max=2)
    gone = MemberSeen("r", 0, "a:1", Presence.GONE)
    seen = [DiskSeen(UUID(int=0), "d", (gone,))]
    known = automation.observe([], seen, 5.0)
    key = automation.key_of(known[0])
    for changes, running, now, held, word in (
        ({}, 1, 15.0, {}, ""),
        ({}, 1, 14.9, {}, "grace time of 10 s ends at 1970-01-01 00:00:15Z"),
        ({}, 2, 15.0, {}, "the fleet may have 2"),
        ({"maintenance": True}, 0, 15.0, {}, "maintenance"),
        ({"automatic": False}, 0, 15.0, {}, "not automatic"),
        ({}, 0, 15.0, {key: "no spare"}, "no spare"),
    ):
        decision = automation.decide(known, seen, replace(policy, **changes), running, held, now)
        assert (decision.begin is None) == bool(word), word
        assert word in decision.faulted[0].waits_for
