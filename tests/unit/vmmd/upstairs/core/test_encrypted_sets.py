"""Encrypted sets with three model downstairs: which members are taken in, and what becomes of reads
that do not decrypt."""

from __future__ import annotations

import dataclasses

import pytest

from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV, CIPHERS
from tests.unit.vmmd.upstairs.world import UPSTAIRS_ID, World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events
from vmmd.upstairs.core.codec import GCM_GENERATION_MAX
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


def active_world(cipher, seed=1):
    world = World(seed, cipher=cipher)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    return world


def settle(world, seconds=10.0):
    assert world.run_until(lambda: not world.in_flight, seconds)


def slot(world, number):
    return world.upstairs.status().slots[number]


def read_status(world, offset, length):
    found = []
    request = Request(BlockOp.READ, "r", offset, length)
    world.in_flight["r"] = lambda status, data, _owned: found.append((status, data))
    world.submit([request])
    assert world.run_until(lambda: bool(found), 30)
    return found[0]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_members_hold_nothing_of_what_the_guest_wrote(cipher):
    world = active_world(cipher)
    assert world.upstairs.status().cipher == cipher
    world.submit([world.write(0, 8), world.flush(), world.read(0, 8)])
    settle(world)
    members = [world.daemons[address] for address in world.targets]
    assert world.run_until(lambda: all(len(member.durable) == 8 for member in members), 5)
    assert world.counts == {"write OK": 1, "flush OK": 1, "read OK": 1}
    written = [block.values[-1] for block in world.blocks[:8]]
    for member in members:
        stored = b"".join(data for _context, data in member.durable.values())
        assert not any(value[:16] in stored for value in written)


def test_the_status_of_a_plain_set_names_no_cipher():
    assert active_world("").upstairs.status().cipher == ""


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (AES_256_GCM, AES_256_GCM_SIV, "CIPHER_MISMATCH"),
        (AES_256_GCM, "", "ENCRYPTION_MISMATCH"),
        (AES_256_GCM_SIV, "rot13", "CIPHER_UNKNOWN"),
        ("", AES_256_GCM, "ENCRYPTION_MISMATCH"),
    ],
)
def test_a_member_that_is_encrypted_otherwise_is_not_taken_in(ours, theirs, reason):
    world = World(2, cipher=ours)
    world.daemons["d1:1"].up = False
    world.daemons["d1:1"].cipher = theirs
    key = world.ask(events.Activate)
    assert not world.run_until(lambda: key in world.answers, 3)
    world.start("d1:1")
    assert not world.run_until(lambda: key in world.answers, 20)
    assert slot(world, 1).last_error.startswith(reason)
    # Made anew like the others it is.
    world.daemons["d1:1"].cipher = ours
    assert world.run_until(world.healthy, 20)


def test_a_set_that_the_wrong_member_joined_first_is_rescued_by_making_it_anew():
    world = World(3, cipher=AES_256_GCM)
    world.daemons["d0:1"].cipher = AES_256_GCM_SIV
    for address in ("d1:1", "d2:1"):
        world.daemons[address].up = False
    world.ask(events.Activate)
    assert world.run_until(lambda: slot(world, 0).state is SlotState.WAIT_QUORUM, 5)
    for address in ("d1:1", "d2:1"):
        world.start(address)
    assert world.run_until(lambda: "CIPHER_MISMATCH" in slot(world, 1).last_error, 10)
    world.crash("d0:1")
    world.daemons["d0:1"].recreate("region-9")
    world.daemons["d0:1"].cipher = AES_256_GCM
    world.start("d0:1")
    assert world.run_until(world.healthy, 30)
    assert world.upstairs.status().cipher == AES_256_GCM


@pytest.mark.parametrize("seconds", [6, 60])
def test_a_replacement_of_another_suite_is_kept_out_even_while_nobody_else_is_there(seconds):
    world = active_world(AES_256_GCM)
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    world.daemons["d3:1"].cipher = AES_256_GCM_SIV
    answer = world.answers[world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))]
    assert answer.value.result is ReplaceResult.STARTED
    assert world.run_until(lambda: "CIPHER_MISMATCH" in slot(world, 2).last_error, 10)
    for address in world.targets:
        world.crash(address)
    ready = (SlotState.LIVE_REPAIR_READY, SlotState.LIVE_REPAIR)
    assert not world.run_until(lambda: slot(world, 2).state in ready, seconds)
    assert slot(world, 2).last_error.startswith("CIPHER_MISMATCH")
    assert world.upstairs.status().cipher == AES_256_GCM
    world.ask(lambda key: events.Replace(key, "d3:1", "d2:1"))
    for address in world.targets:
        world.start(address)
    assert world.run_until(world.healthy, 60)
    world.submit([world.read(0, 8)])
    settle(world)
    assert world.counts["read OK"] == 1


def test_a_region_of_another_owner_is_no_copy():
    world = World(4, cipher=AES_256_GCM)
    original = world.daemons["d2:1"].open_session

    def of_another(*asked, **more):
        code, info = original(*asked, **more)
        return code, info and dataclasses.replace(info, owner_id="another")

    world.daemons["d2:1"].open_session = of_another
    world.daemons["d2:1"].up = False
    world.ask(events.Activate)
    assert not world.run_until(world.healthy, 2)
    world.start("d2:1")
    assert world.run_until(lambda: "OWNER_MISMATCH" in slot(world, 2).last_error, 15)


def test_generations_that_do_not_fit_into_a_nonce_are_refused():
    world = World(5, cipher=AES_256_GCM)
    key = world.ask(lambda key: events.Activate(key, GCM_GENERATION_MAX + 1))
    assert world.run_until(lambda: key in world.answers, 5)
    error = world.answers[key].error
    assert error.reason == "GENERATION_TOO_HIGH"
    assert error.metadata["highest"] == str(GCM_GENERATION_MAX)
    assert world.upstairs.state is UpstairsState.DISABLED


@pytest.mark.parametrize(
    ("cipher", "generation"),
    [(AES_256_GCM, GCM_GENERATION_MAX), (AES_256_GCM_SIV, GCM_GENERATION_MAX + 1)],
)
def test_all_others_can_be_written_under(cipher, generation):
    world = World(6, cipher=cipher)
    world.ask(lambda key: events.Activate(key, generation))
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 4)])
    settle(world)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_damaged_block_is_read_from_another_member_and_counted(cipher):
    world = active_world(cipher)
    world.submit([world.write(0, 8)])
    for name in ("d0:1", "d1:1"):
        world.daemons[name].corrupt_rate = 1.0
    for _ in range(6):
        world.submit([world.read(0, 8), world.read(3, 2)])
        settle(world)
    assert world.counts["read OK"] == 12
    assert world.upstairs.status().read_mismatches > 0
    assert any("did not decrypt" in slot(world, number).last_error for number in range(2))
    world.daemons["d2:1"].corrupt_rate = 1.0
    assert read_status(world, 0, 8) == (BlockStatus.FAILED, None)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_member_that_serves_a_block_in_another_s_place_is_not_believed(cipher):
    world = active_world(cipher)
    world.submit([world.write(0, 8)])
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    for name in ("d0:1", "d1:1"):
        memory = world.daemons[name].memory
        memory[2], memory[5] = memory[5], memory[2]
    for _ in range(4):
        world.submit([world.read(0, 8)])
        settle(world)
    assert world.counts["read OK"] == 4
    assert world.upstairs.status().read_mismatches > 0


@pytest.mark.parametrize("cipher", CIPHERS)
def test_with_another_key_no_set_of_before_is_read_and_nothing_is_given_out(cipher):
    world = active_world(cipher)
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    forget_key(world)
    take_another_key(world)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 20)
    for offset, length in ((0, 8), (2, 1), (7, 3)):
        assert read_status(world, offset, length) == (BlockStatus.FAILED, None)
    assert world.upstairs.status().read_mismatches == 9
    assert "another key" in slot(world, 0).last_error
    # What was never written needs no key.
    assert read_status(world, 10, 4) == (BlockStatus.OK, bytes(4 * 512))


# ---- the key check


def forget_key(world):
    """As regions are that were last promoted before key checks were recorded."""
    for daemon in world.daemons.values():
        daemon.key_check = b""


def take_another_key(world):
    """The upstairs is started again with the wrong key; what it had is returned."""
    right, world.encryption = world.encryption, World(99, cipher=world.cipher).encryption
    world.crash_upstairs()
    return right


@pytest.mark.parametrize("cipher", CIPHERS)
def test_another_key_ends_the_activation_and_the_right_one_goes_on(cipher):
    world = active_world(cipher)
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    right = take_another_key(world)
    before = [world.daemons[address].promoted for address in world.targets]
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 5)
    error = world.answers[key].error
    assert error.reason == "KEY_MISMATCH"
    assert error.metadata["target"] in world.targets
    assert world.upstairs.state is UpstairsState.DISABLED
    # It is not tried again, and nobody was taken over by it.
    attempts = len(world.links)
    assert not world.run_until(lambda: len(world.links) > attempts, 30)
    assert [world.daemons[address].promoted for address in world.targets] == before
    world.encryption = right
    world.crash_upstairs()
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 20)
    world.submit([world.read(0, 8)])
    settle(world)
    assert world.counts["read OK"] == 1


def test_one_member_of_another_key_is_enough():
    world = World(7, cipher=AES_256_GCM)
    world.daemons["d2:1"].owner = UPSTAIRS_ID
    world.daemons["d2:1"].key_check = b"another key's   "
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 5)
    assert world.answers[key].error.reason == "KEY_MISMATCH"
    assert world.answers[key].error.metadata["target"] == "d2:1"


def test_regions_of_before_learn_the_key_when_they_are_promoted():
    world = active_world(AES_256_GCM)
    forget_key(world)
    world.crash_upstairs()
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 20)
    checks = {world.daemons[address].key_check for address in world.targets}
    assert checks == {world.encryption.key_check(UPSTAIRS_ID)}


def test_a_running_set_faults_a_member_that_comes_back_with_another_key():
    world = active_world(AES_256_GCM)
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    world.crash("d1:1")
    right, world.daemons["d1:1"].key_check = world.daemons["d1:1"].key_check, b"x" * 16
    world.start("d1:1")
    assert world.run_until(lambda: "KEY_MISMATCH" in slot(world, 1).last_error, 10)
    assert slot(world, 1).mode is SlotMode.FAULTED
    assert world.upstairs.state is UpstairsState.ACTIVE
    world.submit([world.write(0, 4), world.read(0, 8), world.flush()])
    settle(world)
    assert world.counts == {"write OK": 2, "flush OK": 2, "read OK": 1}
    # Put right, it is repaired.
    world.daemons["d1:1"].key_check = right
    assert world.run_until(world.healthy, 60)


def test_a_replacement_of_another_key_is_kept_out():
    world = active_world(AES_256_GCM)
    world.daemons["d3:1"].owner = UPSTAIRS_ID
    world.daemons["d3:1"].key_check = b"x" * 16
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    assert world.run_until(lambda: "KEY_MISMATCH" in slot(world, 2).last_error, 10)
    assert slot(world, 2).mode is SlotMode.FAULTED
    world.submit([world.write(0, 4), world.flush()])
    settle(world)
    world.daemons["d3:1"].recreate("region-9")
    assert world.run_until(world.healthy, 60)
    assert world.daemons["d3:1"].key_check == world.encryption.key_check(UPSTAIRS_ID)


def read_only_world(wrong):
    """A filled set that is read only from now on; `wrong` members know another key."""
    world = active_world(AES_256_GCM)
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    world.ask(events.Deactivate)
    assert world.run_until(lambda: world.upstairs.state is UpstairsState.INITIALIZING, 10)
    for address in wrong:
        world.daemons[address].key_check = b"x" * 16
    world.restart_read_only()
    return world


def test_a_read_only_set_does_not_fail_for_one_strange_member():
    world = read_only_world(["d0:1"])
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 10)
    assert world.answers[key].error is None
    assert world.run_until(lambda: "KEY_MISMATCH" in slot(world, 0).last_error, 15)
    assert [slot(world, number).state for number in (1, 2)] == [SlotState.ACTIVE] * 2
    assert read_status(world, 0, 8)[0] is BlockStatus.OK
    world.daemons["d0:1"].key_check = world.daemons["d1:1"].key_check
    assert world.run_until(lambda: slot(world, 0).state is SlotState.ACTIVE, 30)


@pytest.mark.parametrize("down", [(), ("d1:1",), ("d1:1", "d2:1")])
def test_a_read_only_set_fails_when_nobody_takes_its_key(down):
    world = read_only_world(["d0:1", "d1:1", "d2:1"])
    for address in down:
        world.daemons[address].up = False
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 15)
    assert world.answers[key].error.reason == "KEY_MISMATCH"


def test_a_read_only_set_that_serves_does_not_mind_a_strange_member_that_comes_late():
    world = read_only_world(["d0:1"])
    world.daemons["d0:1"].up = False
    world.daemons["d2:1"].up = False
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 10)
    world.start("d0:1")
    assert world.run_until(lambda: "KEY_MISMATCH" in slot(world, 0).last_error, 15)
    assert world.upstairs.state is UpstairsState.ACTIVE
    assert read_status(world, 0, 8)[0] is BlockStatus.OK
