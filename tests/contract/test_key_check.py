"""A wrong key against real daemons: refused before anything is written, wherever it turns up."""

from __future__ import annotations

import base64
import random
import uuid
from dataclasses import replace

import pytest

from downstaird.__main__ import main
from downstaird.cloning import Cloning, ask_source
from downstaird.core.clone_plan import Expected
from downstaird.core.region import Region
from downstaird.core.region_files import write_definition
from downstaird.regions import open_clone, opened
from downstaird.store.files import FileDisk
from stairlib.model.cipher import CIPHERS
from stairlib.model.construction import Secret
from stairlib.model.errors import StateError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, one, read, write
from vmmd.block.backend import BlockOp, BlockStatus
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.runner import RegionUpstairs, encryption_of

GEOMETRY = Geometry(4096, 64, 8)
KEY, OTHER_KEY = (
    Secret(base64.b64encode(random.Random(seed).randbytes(32)).decode()) for seed in (1, 2)
)
DATA = random.Random(3).randbytes(5 * 4096)


@pytest.fixture(params=CIPHERS)
async def daemons(tmp_path, request):
    found = DownstairsSet(tmp_path, GEOMETRY, 4, cipher=request.param)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


@pytest.fixture
def volume_id():
    return uuid.uuid4()


@pytest.fixture
async def make(daemons, volume_id, tracing):
    made = []

    def build(generation, key=KEY, owner=volume_id):
        upstairs = RegionUpstairs(daemons.spec(owner, generation, key=key), tracing=tracing)
        made.append(upstairs)
        return upstairs

    yield build
    for upstairs in made:
        await upstairs.close()


async def filled(make, generation=1):
    """Blocks 40 to 44 are written, flushed and let go."""
    upstairs = make(generation)
    await upstairs.activate(timeout_seconds=10)
    await write(upstairs, 40, DATA)
    await flush(upstairs)
    await upstairs.deactivate()


async def refused(upstairs):
    """Activates in vain; the error."""
    with pytest.raises(StateError) as caught:
        await upstairs.activate(timeout_seconds=10)
    assert caught.value.reason == "KEY_MISMATCH"
    assert "give that key" in caught.value.message
    assert upstairs.status().state is UpstairsState.DISABLED
    assert caught.value.message == upstairs.status().reason
    for key in (KEY, OTHER_KEY):
        assert key.reveal() not in str(caught.value)
        assert base64.b64decode(key.reveal()).hex() not in str(caught.value)
    return caught.value


def held(directory):
    """All that a region's owner and its extents say."""
    with opened(directory) as engine:
        states = engine.extent_states()
        return (
            engine.ownership,
            engine.ownership.key_check,
            states.generations.tolist(),
            states.flushes.tolist(),
            states.flags.tolist(),
            [engine.digest(extent) for extent in range(GEOMETRY.extent_count)],
        )


@pytest.mark.parametrize("restarted", [False, True])
async def test_at_activation_and_the_right_one_goes_on(make, daemons, restarted):
    await filled(make)
    if restarted:
        await daemons.restart_all(read_only=False)
    error = await refused(make(9, OTHER_KEY))
    assert error.metadata["target"] in daemons.addresses[:3]
    right = make(2)
    # The generation of the refused one was not promoted anywhere.
    await right.activate(timeout_seconds=10)
    assert await read(right, 39, 7) == bytes(4096) + DATA + bytes(4096)
    assert (await right.verify(read_data=True)).equal


async def test_nothing_of_it_reaches_the_disks(make, daemons):
    await filled(make)
    for number in range(3):
        await daemons.stop(number)
    before = [held(directory) for directory in daemons.directories[:3]]
    for number in range(3):
        await daemons.start(number)
    await refused(make(9, OTHER_KEY))
    await daemons.close()
    assert [held(directory) for directory in daemons.directories[:3]] == before


async def test_of_a_reader_of_any_id(make, daemons, volume_id):
    await filled(make)
    await daemons.restart_all(read_only=True)
    for owner in (volume_id, uuid.uuid4()):
        await refused(make(1, OTHER_KEY, owner))
        reader = make(1, KEY, owner)
        await reader.activate(timeout_seconds=10)
        assert await read(reader, 40, 5) == DATA
    await daemons.stop(0)
    await daemons.stop(2)
    await refused(make(1, OTHER_KEY, uuid.uuid4()))
    alone = make(1, KEY, uuid.uuid4())
    await alone.activate(timeout_seconds=10)
    assert await read(alone, 40, 5) == DATA


async def test_in_a_replacement_by_a_region_that_was_ours_under_another_key(
    make, daemons, volume_id, tracing
):
    right = make(1)
    await right.activate(timeout_seconds=10)
    await write(right, 40, DATA)
    await flush(right)
    # The spare was a member of a set of this volume's that had another key.
    check = encryption_of(daemons.spec(volume_id, key=OTHER_KEY).options).key_check(str(volume_id))
    await daemons.stop(3)
    region = Region.open(FileDisk(daemons.directories[3]))
    owned = replace(region.ownership, owner_id=volume_id, generation=1, key_check=check)
    region.promote(owned)
    region.close()
    await daemons.start(3)
    await right.replace(daemons.addresses[2], daemons.addresses[3])
    slot = lambda: right.status().slots[2]  # noqa: E731 - read again each time
    await until(lambda: "the key is not" in slot().last_error)
    assert slot().mode is SlotMode.FAULTED
    assert await read(right, 40, 5) == DATA
    await write(right, 50, DATA)
    await flush(right)
    await right.deactivate()
    await daemons.close()
    assert held(daemons.directories[3])[0] == owned


async def test_of_a_new_member_it_is_recorded(make, daemons):
    right = make(1)
    await right.activate(timeout_seconds=10)
    await write(right, 40, DATA)
    await right.replace(daemons.addresses[2], daemons.addresses[3])
    await until(lambda: all_active(right))
    await right.deactivate()
    await daemons.close()
    checks = {held(directory)[1] for directory in daemons.directories}
    assert len(checks) == 1
    assert len(checks.pop()) == 16


async def test_a_clone_carries_it_along(make, daemons, tmp_path, tracing):
    await filled(make)
    await daemons.restart_all(read_only=True)
    for number in range(3):
        place = tmp_path / f"clone-{number}"
        task = await ask_source(daemons.addresses[number], tracing, uuid.uuid4(), Expected())
        await Cloning(task, open_clone(place, task.definition), tracing, lambda _: None).run()
        assert held(place)[1] == held(daemons.directories[number])[1] != b""
        await daemons.stop(number)
        daemons.directories[number] = place
        await daemons.start(number)
    reader = uuid.uuid4()
    await refused(make(1, OTHER_KEY, reader))
    right = make(1, KEY, reader)
    await right.activate(timeout_seconds=10)
    assert await read(right, 40, 5) == DATA
    # And as members of their own volume.
    await right.close()
    await daemons.restart_all(read_only=False)
    await refused(make(9, OTHER_KEY))
    owner = make(2)
    await owner.activate(timeout_seconds=10)
    assert await read(owner, 40, 5) == DATA


def age(directory):
    """Makes it what the program before key checks left behind."""
    region = Region.open(FileDisk(directory))
    for _slot in range(2):
        region.promote(replace(region.ownership, key_check=b""))
    region.close()
    older = replace(region.definition, format_version=2)
    write_definition(FileDisk(directory), older, region.layout)


async def test_regions_from_before_open_and_learn_it(make, daemons, tmp_path, tracing):
    await filled(make)
    await daemons.close()
    for directory in daemons.directories[:3]:
        age(directory)
        assert held(directory)[1] == b""
    # A reader's key is nobody's business until the owner has named his.
    await daemons.restart_all(read_only=True)
    reader = make(1, OTHER_KEY, uuid.uuid4())
    await reader.activate(timeout_seconds=10)
    await reader.close()
    task = await ask_source(daemons.addresses[0], tracing, uuid.uuid4(), Expected())
    place = tmp_path / "clone"
    await Cloning(task, open_clone(place, task.definition), tracing, lambda _: None).run()
    assert (task.definition.format_version, held(place)[1]) == (3, b"")
    await daemons.restart_all(read_only=False)
    await filled(make, 2)
    await refused(make(3, OTHER_KEY))
    last = make(3)
    await last.activate(timeout_seconds=10)
    assert await read(last, 40, 5) == DATA
    await last.deactivate()
    await daemons.close()
    with opened(daemons.directories[0]) as engine:
        assert engine.definition.format_version == 3


async def test_a_wrong_key_that_regions_from_before_have_learnt_can_be_forgotten(
    make, daemons, capsys
):
    await filled(make)
    await daemons.close()
    for directory in daemons.directories[:3]:
        age(directory)
    await daemons.restart_all(read_only=False)
    wrong = make(2, OTHER_KEY)
    await wrong.activate(timeout_seconds=10)
    done = await one(wrong, BlockOp.READ, 40, 5)
    assert done.status is BlockStatus.FAILED
    await wrong.deactivate()
    await refused(make(3))
    await daemons.close()
    for directory in daemons.directories[:3]:
        assert main(["forget-key", "-d", str(directory)]) == 0
    assert capsys.readouterr().out.count("has forgotten") == 3
    await daemons.restart_all(read_only=False)
    right = make(3)
    await right.activate(timeout_seconds=10)
    assert await read(right, 40, 5) == DATA
    await right.deactivate()
    await refused(make(4, OTHER_KEY))


async def test_a_running_set_goes_on_without_a_member_of_another_key(make, daemons):
    upstairs = make(1)
    await upstairs.activate(timeout_seconds=10)
    await write(upstairs, 40, DATA)
    await flush(upstairs)
    await daemons.stop(1)
    region = Region.open(FileDisk(daemons.directories[1]))
    right = region.ownership
    region.promote(replace(right, key_check=bytes(15) + b"x"))
    region.close()
    await daemons.start(1)
    await until(lambda: upstairs.status().slots[1].mode is SlotMode.FAULTED)
    await until(lambda: "the key is not" in upstairs.status().slots[1].last_error)
    assert await read(upstairs, 40, 5) == DATA
    await write(upstairs, 0, DATA)
    await flush(upstairs)
    await daemons.stop(1)
    region = Region.open(FileDisk(daemons.directories[1]))
    region.promote(right)
    region.close()
    await daemons.start(1)
    await until(lambda: all_active(upstairs))
    assert upstairs.status().slots[1].state is SlotState.ACTIVE
    assert (await upstairs.verify(read_data=True)).equal
