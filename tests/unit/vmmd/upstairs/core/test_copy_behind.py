"""One of three copies is sent what the guest flushes in groups; nobody sees a difference but in the
time it takes."""

from __future__ import annotations

import pytest

from stairlib import native
from stairlib.wire.frame import FLUSH_WITH_NEXT, OpKind, decode
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events, limits

MEMBERS = ("d0:1", "d1:1", "d2:1")


@pytest.fixture(params=[False, True], ids=["full steps", "short way"])
def world(request):
    if request.param and not native.compiled:
        pytest.skip("runs are made by compiled code alone")
    made = World(5, runs=request.param, delay=0.0001, behind_after=4)
    for server in made.daemons.values():
        server.flush_seconds_max = 0.001
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    return made


@pytest.fixture
def sent(world, monkeypatch):
    """(member, kind, whether it goes with the next) of each op sent, in order."""
    ops = []
    to_server = world._to_server

    def spied(link, data):
        for op in decode(data).ops:
            wait = bool(int(op["flags"]) & FLUSH_WITH_NEXT and op["kind"] == OpKind.FLUSH)
            ops.append((link.server.address, OpKind(int(op["kind"])), wait))
        to_server(link, data)

    monkeypatch.setattr(world, "_to_server", spied)
    return ops


def written_and_flushed(world, times=1, block=0):
    """Until the guest has its answer, each time."""
    for each in range(times):
        world.submit([world.write((block + each) % 24, 1)])
        world.submit([world.flush()])
        assert world.run_until(lambda: not world.in_flight, 1)


def behind(world):
    """Who is behind, when somebody is."""
    member = world.upstairs._region.behind.member
    return None if member is None else member.address


def with_one_behind(world):
    written_and_flushed(world, 12)
    assert world.run_until(lambda: behind(world) is not None, 1)
    assert world.run_until(lambda: world.upstairs.quiet, 1)
    return behind(world)


def stamps(world, address):
    server = world.daemons[address]
    return server.durable_extents.generation, server.durable_extents.flush


def test_all_are_sent_everything_until_it_is_known_who_answers_last(world, sent):
    written_and_flushed(world, 3)
    assert len(sent) == 18
    assert not any(wait for _who, _kind, wait in sent)
    assert behind(world) is None


def test_one_is_sent_a_group_of_flushes_of_which_the_last_alone_is_done_at_once(world, sent):
    late = with_one_behind(world)
    sent.clear()
    count = limits.BEHIND_FLUSHES_MAX
    written_and_flushed(world, count - 1)
    assert {who for who, _kind, _wait in sent} == set(MEMBERS) - {late}
    written_and_flushed(world)
    group = [op[1:] for op in sent if op[0] == late]
    assert group == [
        *[(OpKind.WRITE, False), (OpKind.FLUSH, True)] * (count - 1),
        (OpKind.WRITE, False),
        (OpKind.FLUSH, False),
    ]
    assert not any(wait for who, _kind, wait in sent if who != late)
    assert world.run_until(lambda: world.upstairs.quiet, 1)
    # Each flush has left its own stamp, whoever made it durable when.
    told = [stamps(world, address) for address in MEMBERS]
    assert told[0] == told[1] == told[2]
    assert all(member.jobs == 0 for member in world.upstairs._region.members)
    assert not len(world.upstairs._region.log)


def test_what_is_kept_is_sent_after_a_while(world, sent):
    late = with_one_behind(world)
    sent.clear()
    began = world.now
    written_and_flushed(world, 2)
    assert late not in {who for who, _kind, _wait in sent}
    assert world.run_until(lambda: late in {who for who, _kind, _wait in sent}, 1)
    # The tick of the upstairs may come before.
    assert world.now - began <= limits.BEHIND_SECONDS + 0.001
    assert world.run_until(lambda: world.upstairs.quiet, 1)


@pytest.mark.parametrize(
    "what",
    [events.Tick, lambda: events.Verify("key"), lambda: events.Snapshot("key", "name")],
    ids=["a tick", "a verification", "a snapshot"],
)
def test_whatever_else_is_done_goes_behind_what_is_kept(world, sent, what):
    late = with_one_behind(world)
    written_and_flushed(world, 2)
    sent.clear()
    world.feed(what())
    assert [op[1:] for op in sent if op[0] == late][:4] == [
        (OpKind.WRITE, False),
        (OpKind.FLUSH, True),
        (OpKind.WRITE, False),
        (OpKind.FLUSH, False),
    ]


def test_a_read_of_that_member_goes_behind_what_is_kept(world, sent):
    late = with_one_behind(world)
    written_and_flushed(world, 2)
    region = world.upstairs._region
    for member in region.active:
        # The others are busier, as with large reads.
        member.bytes += 0 if member.address == late else 1 << 20
    sent.clear()
    world.submit([world.read(0, 2)])
    assert [op[1] for op in sent] == [*[OpKind.WRITE, OpKind.FLUSH] * 2, OpKind.READ]
    assert {op[0] for op in sent} == {late}
    assert world.run_until(lambda: not world.in_flight, 1)


def test_what_is_large_is_not_kept(world, sent, monkeypatch):
    monkeypatch.setattr(limits, "BEHIND_BYTES_MAX", 512)
    late = with_one_behind(world)
    sent.clear()
    written_and_flushed(world, 1)
    assert (late, OpKind.WRITE, False) in sent


def test_a_flush_that_the_others_do_not_answer_is_asked_of_the_third(world, sent):
    late = with_one_behind(world)
    hung = next(address for address in MEMBERS if address != late)
    held = []
    server = world.daemons[hung]
    handle = server.handle
    server.handle = lambda *arguments: held.append(arguments)
    began = world.now
    written_and_flushed(world, 1)
    assert world.now - began < 2 * limits.BEHIND_ANSWER_SECONDS + 0.02
    server.handle = handle
    for each in held:
        handle(*each)
    assert world.run_until(lambda: world.upstairs.quiet, 1)


def test_where_the_others_are_often_late_all_are_sent_everything_again(world):
    late = with_one_behind(world)
    hung = next(address for address in MEMBERS if address != late)
    server = world.daemons[hung]
    handle = server.handle
    server.handle = lambda *arguments: world.later(0.02, lambda: handle(*arguments))
    for _ in range(20):
        written_and_flushed(world, 1)
        if behind(world) is None and world.upstairs._region.behind._chosen is None:
            break
    assert world.upstairs._region.behind._chosen is None
    assert world.run_until(lambda: world.upstairs.quiet, 1)


def test_with_one_of_the_others_gone_nothing_is_kept(world, sent):
    late = with_one_behind(world)
    written_and_flushed(world, 2)
    sent.clear()
    world.crash(next(address for address in MEMBERS if address != late))
    assert world.run_until(lambda: not all_there(world), 5)
    assert behind(world) is None
    assert [op[1] for op in sent if op[0] == late][:4] == [OpKind.WRITE, OpKind.FLUSH] * 2
    written_and_flushed(world, 2)


def all_there(world):
    return len(world.upstairs._region.active) == 3


def test_what_was_flushed_is_there_when_the_machine_dies_with_some_kept(world):
    late = with_one_behind(world)
    written_and_flushed(world, 5, block=3)
    assert late == behind(world)
    world.crash_upstairs()
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 30)
    # The world knows what each block must hold.
    for block in range(24):
        world.submit([world.read(block, 1)])
    assert world.run_until(lambda: not world.in_flight, 5)


def test_the_member_that_is_behind_may_die_with_things_kept_for_it(world):
    late = with_one_behind(world)
    written_and_flushed(world, 3)
    world.crash(late)
    written_and_flushed(world, 3)
    world.start(late)
    assert world.run_until(world.healthy, 60)
    written_and_flushed(world, 3)
    assert world.run_until(lambda: world.upstairs.quiet, 1)


def test_it_is_looked_anew_who_is_last_now_and_then(world, monkeypatch):
    monkeypatch.setattr(limits, "BEHIND_FLUSHES", 6)
    with_one_behind(world)
    before = world.upstairs._region.behind
    seen = set()
    for _ in range(60):
        written_and_flushed(world)
        seen.add(before._chosen is None)
    assert seen == {True, False}


def test_a_time_of_zero_is_never(world):
    world.upstairs._region.behind._longest = 0.0
    written_and_flushed(world, 20)
    world.feed(events.Tick())
    assert behind(world) is None


def test_one_that_is_replaced_while_it_is_behind_has_no_part_in_it_any_more(world, sent):
    late = with_one_behind(world)
    written_and_flushed(world, 3)
    key = world.ask(lambda key: events.Replace(key, late, "d3:1"))
    assert world.answers[key].error is None
    world.targets[MEMBERS.index(late)] = "d3:1"
    assert world.run_until(world.healthy, 60)
    assert late not in {slot.address for slot in world.upstairs.status().slots}
    # Somebody of those that are there now is behind again.
    world.daemons["d3:1"].flush_seconds_max = 0.001
    assert with_one_behind(world) in {*MEMBERS, "d3:1"} - {late}
    told = [stamps(world, address) for address in {*MEMBERS, "d3:1"} - {late}]
    assert told[0] == told[1] == told[2]


def test_with_many_requests_that_wait_for_room_nothing_is_kept(world, sent, monkeypatch):
    """What the one behind owes counts like what others owe: the guest does not wait for it."""
    late = with_one_behind(world)
    monkeypatch.setattr(limits, "ADMITTED_JOBS_MAX", 3)
    sent.clear()
    world.submit([world.write(block, 1, discard=True) for block in range(3)])
    world.submit([world.write(block, 1, discard=True) for block in range(3, 6)])
    assert late in {who for who, _kind, _wait in sent}
    assert world.run_until(lambda: not world.in_flight, 1)
