"""Encrypted regions on real daemons: the guest's data over restarts, replacement and repair, and
what becomes of the wrong key."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import uuid
from dataclasses import replace

import pytest

from downstaird.config import CreateOptions
from downstaird.core.region import Region
from downstaird.core.verification import Verification
from downstaird.regions import create_region, opened
from downstaird.store.files import FileDisk
from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV, CIPHERS
from stairlib.model.construction import Secret
from stairlib.model.errors import InvalidRequestError, StateError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, one, read, write
from vmmd.block.backend import BlockOp, BlockStatus
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)
KEY = Secret(base64.b64encode(random.Random(1).randbytes(32)).decode())
OTHER_KEY = Secret(base64.b64encode(random.Random(2).randbytes(32)).decode())
MARK = b"what the guest would not have known"


@pytest.fixture(params=CIPHERS)
def cipher(request):
    return request.param


@pytest.fixture
async def daemons(tmp_path, cipher):
    found = DownstairsSet(tmp_path, GEOMETRY, 4, cipher=cipher)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
async def make(daemons):
    made = []
    ours = uuid.uuid4()
    tracing = Tracing("machine", "test")

    def build(generation=1, key=KEY, volume_id=ours):
        upstairs = RegionUpstairs(daemons.spec(volume_id, generation, key=key), tracing=tracing)
        made.append(upstairs)
        return upstairs

    yield build
    for upstairs in made:
        await upstairs.close()
    tracing.shutdown()


def content(seed, blocks):
    """Blocks that would be recognised anywhere."""
    rng = random.Random(seed)
    return b"".join(MARK.ljust(4000) + rng.randbytes(96) for _ in range(blocks))


def written(path):
    """What a sparse file holds, without its holes."""
    pieces, end = [], 0
    with path.open("rb") as file, contextlib.suppress(OSError):  # no more data behind `end`
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pieces.append(os.pread(file.fileno(), end - start, start))
    return b"".join(pieces)


async def test_what_is_written_is_read_by_the_next_upstairs_and_stored_nowhere(
    make, daemons, cipher
):
    first = make(1)
    await first.activate(timeout_seconds=10)
    assert first.status().cipher == cipher
    small, large = content(1, 3), content(2, 200)
    await write(first, 62, small)
    await write(first, 100, large)
    done = await one(first, BlockOp.DISCARD, 63, 1)
    assert done.status is BlockStatus.OK
    await flush(first)
    assert (await first.verify(read_data=True)).equal
    await first.deactivate()

    second = make(2)
    await second.activate(timeout_seconds=10)
    assert await read(second, 61, 5) == (
        bytes(4096) + small[:4096] + bytes(4096) + small[8192:] + bytes(4096)
    )
    assert await read(second, 100, 200) == large
    await second.deactivate()
    await daemons.close()
    for directory in daemons.directories[:3]:
        with opened(directory) as engine:
            check = Verification(engine)
            for _step in check.steps():
                pass
            assert (check.blocks_read, check.blocks_bad) == (202, 0)
        stored = b"".join(written(path) for path in directory.iterdir() if path.is_file())
        assert len(stored) > 202 * 4096
        assert MARK not in stored
        assert base64.b64decode(KEY.reveal()) not in stored


async def test_with_another_key_reads_fail_and_are_counted(make, daemons):
    """Of regions, that is, that do not know their key: their owner has not named it yet."""
    first = make(1)
    await first.activate(timeout_seconds=10)
    data = content(3, 4)
    await write(first, 0, data)
    await flush(first)
    await first.deactivate()
    await daemons.close()
    for directory in daemons.directories[:3]:
        region = Region.open(FileDisk(directory))
        region.promote(replace(region.ownership, key_check=b""))
        region.close()
    await daemons.restart_all(read_only=True)
    wrong = make(2, OTHER_KEY)
    await wrong.activate(timeout_seconds=10)
    await until(lambda: all_active(wrong))
    for offset, length in ((0, 4), (2, 1)):
        done = await one(wrong, BlockOp.READ, offset, length)
        assert (done.status, done.data) == (BlockStatus.FAILED, None)
    assert wrong.status().read_mismatches == 6
    assert "another key" in wrong.status().slots[0].last_error
    await wrong.deactivate()
    right = make(3)
    await right.activate(timeout_seconds=10)
    assert await read(right, 0, 4) == data


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_member_is_replaced_and_serves_alone(make, daemons, stream):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    data = content(4, 256)
    await write(upstairs, 0, data)
    await flush(upstairs)
    outcome = await upstairs.replace(daemons.addresses[stream], daemons.addresses[3])
    assert outcome.result is ReplaceResult.STARTED
    newer = content(5, 64)
    await write(upstairs, 96, newer)
    await until(lambda: all_active(upstairs))
    assert (await upstairs.verify(read_data=True)).equal
    await flush(upstairs)
    for number in {0, 1, 2} - {stream}:
        await daemons.stop(number)
    await until(lambda: [s.state for s in upstairs.status().slots].count(SlotState.ACTIVE) == 1)
    expected = data[: 96 * 4096] + newer + data[160 * 4096 :]
    assert await read(upstairs, 0, 256) == expected


async def test_a_member_that_was_emptied_is_repaired_from_the_others(make, daemons, cipher):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    data = content(6, 128)
    await write(upstairs, 10, data)
    await flush(upstairs)
    await daemons.stop(1)
    await until(lambda: upstairs.status().slots[1].state is not SlotState.ACTIVE)
    for round_ in range(3):
        await write(upstairs, 10, data[: 64 * 4096])
        await flush(upstairs)
        data = content(7 + round_, 64) + data[64 * 4096 :]
        await write(upstairs, 10, data[: 64 * 4096])
    await flush(upstairs)
    await upstairs.deactivate()
    await daemons.start(1)
    again = make(2)
    await again.activate(timeout_seconds=10)
    assert (await again.verify(read_data=True)).equal
    await daemons.stop(0)
    await daemons.stop(2)
    await until(lambda: [s.state for s in again.status().slots].count(SlotState.ACTIVE) == 1)
    assert await read(again, 10, 128) == data


async def test_a_reader_of_another_id_needs_only_the_key_and_one_member(make, daemons):
    first = make(1)
    await first.activate(timeout_seconds=10)
    data = content(9, 5)
    await write(first, 40, data)
    await flush(first)
    await first.deactivate()
    daemons.read_only = True
    for number in range(3):
        await daemons.stop(number)
    await daemons.start(1)
    reader = make(1, volume_id=uuid.uuid4())
    await reader.activate(timeout_seconds=10)
    assert await read(reader, 39, 7) == bytes(4096) + data + bytes(4096)
    done = await one(reader, BlockOp.READ_OWNED, 39, 7)
    assert done.owned.tolist() == [False, *[True] * 5, False]
    assert done.data[4096:-4096] == data
    wrong = make(1, OTHER_KEY, volume_id=uuid.uuid4())
    with pytest.raises(StateError) as refused:
        await wrong.activate(timeout_seconds=10)
    assert refused.value.reason == "KEY_MISMATCH"


async def test_unwritten_writes_are_encrypted_and_keep_what_is_there(make):
    upstairs = make(1)
    await upstairs.activate(timeout_seconds=10)
    mine, scrubbed = content(10, 1), content(11, 3)
    await write(upstairs, 5, mine)
    done = await one(upstairs, BlockOp.WRITE_UNWRITTEN, 4, 3, scrubbed)
    assert done.status is BlockStatus.OK
    await flush(upstairs)
    expected = scrubbed[:4096] + mine + scrubbed[8192:]
    assert await read(upstairs, 4, 3) == expected
    assert (await upstairs.verify(read_data=True)).equal


async def test_a_plain_upstairs_is_refused(make):
    with pytest.raises(UnavailableError) as refused:
        await make(key=None).activate(timeout_seconds=1)
    assert "asked for not encrypted, the region has encrypted" in refused.value.message


async def test_members_of_another_suite_are_refused(make, daemons, cipher, tmp_path):
    other = AES_256_GCM if cipher == AES_256_GCM_SIV else AES_256_GCM_SIV
    await daemons.stop(2)
    daemons.directories[2] = tmp_path / "other"
    create_region(CreateOptions(tmp_path / "other", uuid.uuid4(), GEOMETRY, other))
    upstairs = make()
    with pytest.raises(UnavailableError, match=r"slot 2 .* is WAIT_CONNECT"):
        await upstairs.activate(timeout_seconds=1)
    await daemons.start(2)
    await until(lambda: "CIPHER_MISMATCH" in upstairs.status().slots[2].last_error)
    with pytest.raises(UnavailableError, match=f"encrypted with {other}, that of slot"):
        await upstairs.activate(timeout_seconds=0.5)


@pytest.mark.parametrize("key", ["", "x", "é", "A" * 42, base64.b64encode(bytes(31)).decode()])
async def test_a_key_that_is_none_is_refused_and_not_shown(make, cipher, key):
    with pytest.raises(InvalidRequestError) as refused:
        make(key=Secret(key))
    assert refused.value.reason == "KEY_INVALID"
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
    assert not key or key not in refused.value.message.replace("32 bytes", "")
