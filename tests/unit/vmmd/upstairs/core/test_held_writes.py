"""Small writes that come one by one are answered, held for a moment, and sent as one frame; nothing
that comes after them is served without them."""

from __future__ import annotations

import pytest

from stairlib import native
from stairlib.wire.frame import OpKind, decode
from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.slot_states import SlotMode

BLOCK = 512


@pytest.fixture(params=[False, True], ids=["full steps", "short way"])
def world(request):
    if request.param and not native.compiled:
        pytest.skip("runs are made by compiled code alone")
    made = World(5, runs=request.param)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    made.submit([made.write(0, 24), made.flush()])
    assert made.run_until(lambda: made.upstairs.quiet and not made.in_flight, 5)
    return made


@pytest.fixture
def sent(world, monkeypatch):
    """The kinds of the ops of each frame to slot 0's member, in order."""
    frames = []
    to_server = world._to_server

    def spied(link, data):
        if link.server is world.daemons["d0:1"]:
            frames.append([OpKind(kind) for kind in decode(data).ops["kind"].tolist()])
        to_server(link, data)

    monkeypatch.setattr(world, "_to_server", spied)
    return frames


def pass_by(world, seconds):
    end = world.now + seconds
    world.run_until(lambda: world.now >= end, seconds)


def test_a_few_are_answered_at_once_and_leave_together(world, sent):
    for block in (3, 7, 3):
        world.submit([world.write(block, 1)])
    assert not world.in_flight
    assert not sent
    assert not world.upstairs.quiet
    pass_by(world, limits.HELD_SECONDS)
    assert sent == [[OpKind.WRITE] * 3]
    world.submit([world.read(0, 24)])
    assert world.run_until(lambda: not world.in_flight, 5)


def test_the_next_ones_are_held_anew(world, sent):
    for _round in range(3):
        world.submit([world.write(1, 1)])
        pass_by(world, limits.HELD_SECONDS)
    assert sent == [[OpKind.WRITE]] * 3


def test_discards_are_held_among_them_in_their_order(world, sent):
    world.submit([world.write(2, 1)])
    world.submit([world.write(2, 1, discard=True)])
    world.submit([world.read(2, 1)])
    assert sent[0] == [OpKind.WRITE, OpKind.DISCARD]
    assert world.run_until(lambda: not world.in_flight, 5)


def test_as_soon_as_there_are_many_they_are_sent(world, sent):
    for _write in range(limits.HELD_OPS_MAX):
        assert not sent
        world.submit([world.write(4, 1)])
    assert sent == [[OpKind.WRITE] * limits.HELD_OPS_MAX]


def test_as_soon_as_it_is_much_it_is_sent(world, sent, monkeypatch):
    monkeypatch.setattr(limits, "HELD_BYTES_MAX", 4 * BLOCK)
    world.submit([world.write(0, 3)])
    assert not sent
    world.submit([world.write(9, 1)])
    assert sent == [[OpKind.WRITE, OpKind.WRITE]]


def test_a_flush_covers_them(world, sent):
    world.submit([world.write(5, 1)])
    world.submit([world.flush()])
    assert sent == [[OpKind.WRITE], [OpKind.FLUSH]]


def test_so_does_a_flush_that_nobody_asked_for(world, sent, monkeypatch):
    monkeypatch.setattr(limits, "HELD_SECONDS", 60.0)
    world.submit([world.write(5, 1)])
    pass_by(world, limits.FLUSH_TIMEOUT_SECONDS + 0.2)
    assert sent == [[OpKind.WRITE], [OpKind.FLUSH]]


def test_a_read_sees_them(world, sent):
    world.submit([world.write(6, 1)])
    # The world compares what is read with what was written.
    world.submit([world.read(6, 1)])
    assert world.run_until(lambda: not world.in_flight, 5)
    assert sent[0] == [OpKind.WRITE]


def test_the_guest_may_use_its_memory_again_at_once(world):
    memory = bytearray(b"\1" * BLOCK)
    world.in_flight["mine"] = lambda *_answer: None
    world.submit([Request(BlockOp.WRITE, "mine", 8, 1, memoryview(memory))])
    memory[:] = b"\2" * BLOCK
    got = []
    world.in_flight["again"] = lambda _status, data, _owned: got.append(data)
    world.submit([Request(BlockOp.READ, "again", 8, 1)])
    assert world.run_until(lambda: got, 5)
    assert got == [b"\1" * BLOCK]


def test_a_deactivation_flushes_them(world, sent):
    world.submit([world.write(1, 1)])
    key = world.ask(events.Deactivate)
    assert sent == [[OpKind.WRITE], [OpKind.FLUSH]]
    assert world.run_until(lambda: key in world.answers, 5)
    assert world.answers[key].error is None


def test_a_snapshot_holds_them(world, sent):
    world.submit([world.write(1, 1)])
    world.ask(lambda key: events.Snapshot(key, "monday"))
    assert sent == [[OpKind.WRITE], [OpKind.FLUSH]]


def test_an_unwritten_write_is_not_held(world, sent):
    """A filling may begin meanwhile, and then there must be none."""
    world.submit([world.write(0, 1)])
    world.submit([world.write_unwritten(3, 1)])
    assert sent == [[OpKind.WRITE, OpKind.WRITE_UNWRITTEN]]


def test_nor_is_one_that_came_with_a_write_behind_it(world, sent):
    world.submit([world.write_unwritten(3, 1), world.write(0, 1)])
    # What comes as a run is taken before the rest of its batch, which is unordered in itself.
    first, second = OpKind.WRITE_UNWRITTEN, OpKind.WRITE
    assert sent == [[second, first] if world.runs else [first, second]]


def test_when_all_members_are_given_up_meanwhile_the_next_flush_says_so(world, sent, monkeypatch):
    monkeypatch.setattr(limits, "HELD_SECONDS", limits.OFFLINE_SECONDS_MAX + 5)
    for daemon in list(world.daemons):
        world.crash(daemon)
    assert world.run_until(lambda: all(s.mode is SlotMode.OFFLINE for s in slots(world)), 5)
    statuses = []
    world.in_flight["mine"] = lambda status, *_rest: statuses.append(status)
    world.submit([Request(BlockOp.WRITE, "mine", 0, 1, bytes(BLOCK))])
    assert statuses == [BlockStatus.OK]
    pass_by(world, limits.OFFLINE_SECONDS_MAX + 10)
    for daemon in world.daemons.values():
        daemon.up = True
    assert world.run_until(world.healthy, 60)
    assert not any(OpKind.WRITE in frame for frame in sent)
    for expected in (BlockStatus.FAILED, BlockStatus.OK):
        statuses.clear()
        world.in_flight["flush"] = lambda status, *_rest: statuses.append(status)
        world.submit([Request(BlockOp.FLUSH, "flush", 0, 0)])
        assert world.run_until(lambda: statuses, 5)
        assert statuses == [expected]


def slots(world):
    return world.upstairs.status().slots


def test_a_flush_alone_goes_the_short_way_while_all_are_there(world, sent):
    """With one away, which may have to be given up for what is held for it, it is a full step."""
    world.counts.clear()
    for _round in range(3):
        world.submit([world.write(5, 1)])
        world.submit([world.flush()])
        assert sent[-2:] == [[OpKind.WRITE], [OpKind.FLUSH]]
        assert world.run_until(lambda: not world.in_flight, 5)
    pass_by(world, 2 * limits.HELD_SECONDS)
    assert len(sent) == 6
    by_short_way = world.counts.get("short way", 0)
    # Of each round the write, the flush, three members' answers to both, and a timer in vain.
    assert by_short_way == (3 * 9 if world.runs else 0)
    world.crash("d2:1")
    assert world.run_until(lambda: not all_there(world), 5)
    world.submit([world.write(6, 1)])
    before = world.counts.get("short way", 0)
    world.submit([world.flush()])
    assert world.counts.get("short way", 0) == before
    assert world.run_until(lambda: not world.in_flight, 5)


def all_there(world):
    return all(slot.mode is SlotMode.NEW for slot in world.upstairs.status().slots)


def test_writes_and_the_flush_behind_them_may_be_answered_together(world, sent):
    world.joins = True
    world.counts.clear()
    for _round in range(3):
        world.submit([world.write(5, 1)])
        world.submit([world.flush()])
        assert world.run_until(lambda: not world.in_flight, 5)
    pass_by(world, 2 * limits.HELD_SECONDS)
    assert all(member.jobs == 0 for member in world.upstairs._region.members)
    joined = world.counts["joined"]
    assert joined > 3
    # Of each round the write, the flush, the members' answers, and a timer in vain.
    by_short_way = world.counts.get("short way", 0)
    assert by_short_way == (3 * 9 - joined if world.runs else 0)
    assert world.upstairs.quiet


def test_what_is_held_after_a_flush_is_held_for_as_long_as_any(world, sent):
    """The time that was told for what the flush has sent is not its time."""
    world.submit([world.write(5, 1)])
    pass_exactly(world, 0.6 * limits.HELD_SECONDS)
    assert not sent
    world.submit([world.flush()])
    sent.clear()
    world.submit([world.write(6, 1)])
    pass_exactly(world, 0.6 * limits.HELD_SECONDS)
    assert not sent
    pass_exactly(world, 0.6 * limits.HELD_SECONDS)
    assert sent == [[OpKind.WRITE]]
    assert world.run_until(lambda: not world.in_flight, 5)


def test_a_member_that_answers_more_than_it_was_asked_is_let_go(world, sent):
    """Also when its answers to writes and a flush come together."""
    world.joins = True
    told = []
    send = world._send_to_client

    def twice(upstairs, link, data):
        send(upstairs, link, data)
        if link.server is world.daemons["d1:1"] and not told:
            told.append(data)
            send(upstairs, link, data)

    world.submit([world.write(5, 1)])
    world._send_to_client = twice
    world.submit([world.flush()])
    assert world.run_until(lambda: not world.in_flight, 5)
    assert world.run_until(lambda: not all_there(world), 5)
    assert decode(told[0]).op_count == 2
    assert "more answers" in slots(world)[1].last_error


def pass_exactly(world, seconds):
    """As `pass_by`, which goes on to the next thing that happens."""
    over = []
    world.later(seconds, lambda: over.append(True))
    assert world.run_until(lambda: bool(over), 5)
