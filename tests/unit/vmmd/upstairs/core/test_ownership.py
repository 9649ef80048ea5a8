"""Reads that tell which blocks were written, and writes that spare those: one situation each."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FrameKind, OpKind, decode, encode, pack_op
from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState

SIZE = 512


def made(seed=1, **kwargs):
    world = World(seed, **kwargs)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    return world


@pytest.fixture
def world():
    return made()


def settle(world, seconds=10.0):
    assert world.run_until(lambda: not world.in_flight, seconds)


def ask(world, *requests):
    """(status, data, owned) of each, submitted as one batch."""
    found = {}
    for request in requests:
        world.in_flight[request.token] = lambda *taken, token=request.token: found.update(
            {token: taken}
        )
    world.submit(list(requests))
    assert world.run_until(lambda: len(found) == len(requests), 60)
    return [found[request.token] for request in requests]


def slot(world, number):
    return world.upstairs.status().slots[number]


def test_a_read_tells_which_blocks_were_written(world):
    world.submit([world.write(3, 2), world.write(7, 1, discard=True)])
    [(status, data, owned)] = ask(world, Request(BlockOp.READ_OWNED, "r", 2, 6))
    assert status is BlockStatus.OK
    assert owned.tolist() == [False, True, True, False, False, False]
    assert data[:SIZE] == bytes(SIZE)
    assert data[SIZE : 2 * SIZE] == world.blocks[3].values[-1]
    assert data[3 * SIZE :] == bytes(3 * SIZE)


def test_a_read_without_ownership_is_told_none_in_the_same_batch(world):
    world.submit([world.write(0, 1)])
    plain, owned = ask(
        world, Request(BlockOp.READ, "p", 0, 2), Request(BlockOp.READ_OWNED, "o", 0, 2)
    )
    assert plain[1] == owned[1]
    assert plain[2] is None
    assert owned[2].tolist() == [True, False]


def test_ownership_of_no_blocks_is_told_as_such(world):
    [(status, data, owned)] = ask(world, Request(BlockOp.READ_OWNED, "r", 4, 0))
    assert (status, data, owned.tolist()) == (BlockStatus.OK, b"", [])


def test_ownership_past_the_end_is_refused_whole(world):
    count = world.geometry.block_count
    [(status, _, owned)] = ask(world, Request(BlockOp.READ_OWNED, "r", count - 1, 2))
    assert status is BlockStatus.OUT_OF_RANGE
    assert owned is None


def test_ownership_is_gathered_from_the_pieces_of_a_large_read():
    world = made(5, geometry=Geometry(512, 16384, 2))
    length = (9 << 20) // 512
    at = (8 << 20) // 512  # in the second piece of the read
    world.submit([world.write(5, 1), world.write(at + 3, 2)])
    [(status, data, owned)] = ask(world, Request(BlockOp.READ_OWNED, "r", 0, length))
    assert status is BlockStatus.OK
    assert len(data) == length * 512
    assert [index for index in range(length) if owned[index]] == [5, at + 3, at + 4]


def test_ownership_is_told_when_a_reply_comes_in_parts(world, monkeypatch):
    world.submit([world.write(1, 2), world.write(6, 1)])
    whole = world._to_client

    def in_parts(upstairs, link, data):
        frame = decode(data)
        at = 0
        for op in frame.ops:
            end = at + int(op["length"])
            entry = [
                pack_op(int(op["job"]), OpKind.READ, offset=int(op["offset"]), length=end - at)
            ]
            part = frame.payload[at * SIZE : end * SIZE]
            contexts = frame.contexts[at:end]
            reply = encode(FrameKind.REPLY, entry, contexts=contexts, payload=[part])
            whole(upstairs, link, b"".join(reply))
            at = end

    settle(world)
    monkeypatch.setattr(world, "_to_client", in_parts)
    first, second, third = ask(
        world,
        Request(BlockOp.READ_OWNED, "a", 0, 2),
        Request(BlockOp.READ_OWNED, "b", 2, 3),
        Request(BlockOp.READ_OWNED, "c", 6, 1),
    )
    assert first[2].tolist() == [False, True]
    assert second[2].tolist() == [True, False, False]
    assert third[2].tolist() == [True]
    assert second[1] == world.blocks[2].values[-1] + bytes(2 * SIZE)


def test_ownership_comes_from_another_member_when_one_has_damaged_data(world):
    world.submit([world.write(0, 3)])
    for daemon in list(world.daemons.values())[:2]:
        daemon.corrupt_rate = 1.0
    for number in range(6):
        [(status, data, owned)] = ask(world, Request(BlockOp.READ_OWNED, number, 1, 3))
        assert status is BlockStatus.OK
        assert owned.tolist() == [True, True, False]
        assert data[:SIZE] == world.blocks[1].values[-1]
    assert world.upstairs.status().read_mismatches > 0


def test_ownership_comes_from_another_member_when_one_is_lost(world):
    world.submit([world.write(0, 3)])
    settle(world)
    found = []
    for number in range(3):
        world.in_flight[number] = lambda *taken: found.append(taken)
    world.submit([Request(BlockOp.READ_OWNED, number, 0, 4) for number in range(3)])
    world.crash("d0:1")
    world.crash("d1:1")
    assert world.run_until(lambda: len(found) == 3, 30)
    assert [owned.tolist() for _, _, owned in found] == [[True, True, True, False]] * 3


def test_a_read_whose_only_member_loses_its_connection_is_sent_to_it_again(world):
    for address in ("d1:1", "d2:1"):
        world.crash(address)
    assert world.run_until(
        lambda: slot(world, 2).mode is slot(world, 1).mode is SlotMode.FAULTED,
        limits.OFFLINE_SECONDS_MAX + 5,
    )
    found = []
    world.in_flight["r"] = lambda *taken: found.append(taken[0])
    world.submit([Request(BlockOp.READ, "r", 0, 1)])
    world.break_links("d0:1")
    assert world.run_until(lambda: bool(found), 20)
    assert found == [BlockStatus.OK]


def test_a_read_under_which_connections_keep_breaking_fails_in_the_end(world):
    for address in ("d1:1", "d2:1"):
        world.crash(address)
    assert world.run_until(
        lambda: slot(world, 2).mode is slot(world, 1).mode is SlotMode.FAULTED,
        limits.OFFLINE_SECONDS_MAX + 5,
    )
    found = []
    world.in_flight["r"] = lambda *taken: found.append(taken[0])
    world.submit([Request(BlockOp.READ, "r", 0, 1)])
    for _ in range(limits.READ_LOSSES_MAX + 1):
        assert not found
        world.break_links("d0:1")
        assert world.run_until(
            lambda: bool(found) or slot(world, 0).state is SlotState.NEGOTIATING, 20
        )
        assert world.run_until(lambda: bool(found) or slot(world, 0).state is SlotState.ACTIVE, 20)
    assert found == [BlockStatus.FAILED]


def test_an_unwritten_write_spares_what_was_written(world):
    world.submit([world.write(1, 1), world.write_unwritten(0, 3)])
    world.submit([world.read(0, 4)])
    settle(world)
    assert world.counts["unwritten OK"] == 1
    kept = [block.values[-1] for block in world.blocks[:4]]
    assert kept[0] == kept[2] != bytes(SIZE)
    assert kept[1] != kept[0]
    assert kept[3] == bytes(SIZE)


@pytest.mark.parametrize("write_first", [True, False])
def test_a_write_in_the_same_batch_wins(world, write_first):
    pair = [world.write(2, 1), world.write_unwritten(2, 1)]
    world.submit(pair if write_first else pair[::-1])
    wanted = bytes(pair[0].data)
    [(_, data, _)] = ask(world, Request(BlockOp.READ, "r", 2, 1))
    assert data == wanted


def test_an_unwritten_write_of_any_size_is_cut():
    world = made(5, geometry=Geometry(512, 16384, 2))
    length = (9 << 20) // 512
    world.submit([world.write((8 << 20) // 512, 1)])
    world.submit([world.write_unwritten(0, length)])
    world.submit([world.read(0, length + 1)])
    settle(world)
    assert world.counts == {"write OK": 1, "unwritten OK": 1, "read OK": 1}


def test_an_unwritten_write_of_the_wrong_size_fails(world):
    [(status, _, _)] = ask(world, Request(BlockOp.WRITE_UNWRITTEN, "w", 0, 2, bytes(SIZE)))
    assert status is BlockStatus.FAILED


def test_a_member_that_was_away_comes_to_the_same_end(world):
    world.submit([world.write(0, 2), world.flush()])
    settle(world)
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.OFFLINE, 5)
    world.submit([world.write_unwritten(0, 4)])
    world.submit([world.write(3, 1), world.write(1, 1, discard=True)])
    world.submit([world.write_unwritten(0, 4)])
    world.start("d1:1")
    assert world.run_until(world.healthy, 20)
    key = world.ask(events.Verify)
    assert world.run_until(lambda: key in world.answers, 10)
    digests = [one.tolist() for one in world.answers[key].value.by_slot.values()]
    assert len(digests) == 3
    assert digests[0] == digests[1] == digests[2]
    assert slot(world, 1).repairs_completed == 0


def test_unwritten_writes_wait_while_a_member_is_being_filled():
    world = made(8, geometry=Geometry(512, 4, 40))
    world.submit([world.write(0, 160), world.flush()])
    settle(world)
    world.answers[world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))]
    assert world.run_until(lambda: slot(world, 2).state is SlotState.LIVE_REPAIR, 5)
    world.submit([world.write_unwritten(0, 1)])
    assert world.counts["unwritten BUSY"] == 1
    assert world.run_until(world.healthy, 20)
    world.submit([world.write_unwritten(0, 1)])
    assert world.counts["unwritten OK"] == 1


def test_a_member_that_is_gone_does_not_keep_unwritten_writes_waiting(world):
    world.crash("d1:1")
    assert world.run_until(
        lambda: slot(world, 1).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX + 5
    )
    world.submit([world.write_unwritten(4, 2)])
    assert world.counts["unwritten OK"] == 1
    world.start("d1:1")
    assert world.run_until(world.healthy, 30)
    key = world.ask(events.Verify)
    assert world.run_until(lambda: key in world.answers, 10)
    digests = [one.tolist() for one in world.answers[key].value.by_slot.values()]
    assert digests[0] == digests[1] == digests[2]


def test_an_unwritten_write_needs_two_members(world):
    for address in ("d0:1", "d1:1"):
        world.crash(address)
    assert world.run_until(
        lambda: slot(world, 0).mode is slot(world, 1).mode is SlotMode.FAULTED,
        limits.OFFLINE_SECONDS_MAX + 5,
    )
    [(status, _, _)] = ask(world, Request(BlockOp.WRITE_UNWRITTEN, "w", 0, 1, bytes(SIZE)))
    assert status is BlockStatus.FAILED
