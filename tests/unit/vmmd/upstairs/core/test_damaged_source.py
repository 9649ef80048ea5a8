"""The best copy of an extent has a block that cannot be read, when the members are made equal."""

from __future__ import annotations

import pytest

from stairlib.wire.frame import OpKind
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.upstairs_states import UpstairsState

NEWEST, SECOND, THIRD = "d0:1", "d1:1", "d2:1"


def ahead(*, flushed: bool, blocks=(3,), behind=(SECOND, THIRD)):
    """A world whose upstairs has gone, with these blocks written last and missing on the members
    that are `behind`; `flushed`: the newest has a stamp for them."""
    world = World(7)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([*(world.write(block, 1) for block in (0, 1, 2, 3, 5)), world.flush()])
    assert world.run_until(lambda: not world.in_flight, 10)
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    before = {address: dict(world.daemons[address].durable) for address in behind}
    stamps = {address: world.daemons[address].durable_extents.copy() for address in behind}
    world.submit([world.write(block, 1) for block in blocks])
    if flushed:
        world.submit([world.flush()])
        assert world.run_until(lambda: world.upstairs.quiet, 10)
    else:
        everybody = [world.daemons[target] for target in world.targets]
        assert world.run_until(lambda: all(each.dirty[0] for each in everybody), 5)
    world.crash_upstairs()
    for address in behind:
        daemon = world.daemons[address]
        if flushed:
            daemon.crash()
            daemon.durable, daemon.durable_extents = before[address], stamps[address]
            daemon.put_back(daemon.saved())
            world.start(address)
        else:
            for block in blocks:
                daemon.memory[block] = before[address][block]
    # What only the newest member has was never acknowledged by a flush that two have.
    for block in blocks:
        world.blocks[block].exact = False
        world.blocks[block].floor = 0
    return world


def asked_of(world):
    return [kind for target in world.targets for kind in world.daemons[target].asked_to]


def marks(world):
    return [any(world.daemons[target].extents.incomplete) for target in world.targets]


def same_everywhere(world):
    world.submit([world.read(block, 1) for block in range(world.geometry.block_count)])
    assert world.run_until(lambda: not world.in_flight, 10)
    contexts = [
        {block: value[0] for block, value in world.daemons[target].memory.items()}
        for target in world.targets
    ]
    assert contexts[0] == contexts[1] == contexts[2]


def test_a_block_that_the_others_have_is_not_needed_from_it():
    """Rotten is an old block, which all have; the newest member is ahead in another one."""
    world = ahead(flushed=True)
    world.daemons[NEWEST].rotten = {1}
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 10)
    assert OpKind.COPY_CHECK in asked_of(world)
    same_everywhere(world)


def test_one_that_can_be_filled_is_the_source_of_the_other():
    """The second has the rotten block, the third does not: it is filled from the second."""
    world = ahead(flushed=True)
    newest, third = world.daemons[NEWEST], world.daemons[THIRD]
    newest.rotten = {1}
    third.memory[1] = third.durable[1] = third.durable[0]
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 20)
    assert third.memory[1] == newest.memory[1]
    same_everywhere(world)


def test_a_copy_of_the_same_stamp_takes_its_place():
    """Unflushed writes differ: nothing that was flushed is lost by taking another one's."""
    world = ahead(flushed=False)
    newest = world.daemons[NEWEST]
    rotten = newest.memory[3]
    newest.rotten = {3}
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 10)
    assert newest.memory[3] != rotten
    assert not newest.rotten
    same_everywhere(world)


@pytest.mark.parametrize("serving", [False, True])
def test_what_nobody_has_is_told_and_nothing_is_given_up(serving):
    world = ahead(flushed=True)
    world.daemons[NEWEST].rotten = {3}
    before = [dict(world.daemons[target].memory) for target in world.targets]
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 10)
    error = world.answers[key].error
    assert error.reason == "SOURCE_DAMAGED"
    assert "slot 0 (d0:1)" in error.message
    assert error.metadata["extent"] == "0"
    assert world.upstairs.status().state is UpstairsState.DISABLED
    assert world.upstairs.status().reason.startswith("SOURCE_DAMAGED: ")
    assert marks(world) == [False] * 3
    assert [dict(world.daemons[target].memory) for target in world.targets] == before
    # It stays so: it is not begun again by itself.
    asked = len(asked_of(world))
    world.run_until(lambda: False, 30)
    assert len(asked_of(world)) == asked
    if serving:
        # Its disk gives the block again.
        world.daemons[NEWEST].rotten = set()
        world.ask(lambda key: events.Activate(key, generation=10))
        assert world.run_until(world.healthy, 20)
        same_everywhere(world)


def test_nobody_else_is_marked_while_a_source_cannot_be_asked():
    world = ahead(flushed=True)
    for address in (SECOND, THIRD):
        resolve = world.daemons[address].resolve
        world.daemons[address].resolve = lambda asked, resolve=resolve: (
            None if asked == NEWEST else resolve(asked)
        )
    world.ask(events.Activate)
    assert world.run_until(lambda: "REPAIR_SOURCE" in world.upstairs.status().reason, 10)
    assert marks(world) == [False] * 3
    assert world.upstairs.status().state is UpstairsState.GO_ACTIVE


def test_damage_that_is_met_when_the_others_are_marked_ends_it_too():
    world = ahead(flushed=True)
    newest = world.daemons[NEWEST]
    key = world.ask(events.Activate)
    others = (world.daemons[SECOND], world.daemons[THIRD])
    assert world.run_until(lambda: all(any(o.extents.incomplete) for o in others), 10)
    newest.rotten = {3}
    assert world.run_until(lambda: key in world.answers, 20)
    error = world.answers[key].error
    assert error.reason == "SOURCE_DAMAGED"
    assert "being filled from it" in error.message
    # What the copy ended with is named in the sentence; the code stands before it all the same.
    assert "EXTENT_COPY" in error.message
    assert world.upstairs.status().reason == f"SOURCE_DAMAGED: {error.message}"
    newest.rotten = set()
    world.ask(lambda key: events.Activate(key, generation=10))
    assert world.run_until(world.healthy, 20)
    same_everywhere(world)
