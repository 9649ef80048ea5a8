"""A daemon whose answers to OpenSession are not what was asked for, over real gRPC: it is not taken
in, its slot says why, nothing ends, and once it answers properly it is a member."""

from __future__ import annotations

import asyncio
import socket
import uuid

import pytest

from downstaird.services.block_service import BlockServicer
from stairlib.model.errors import DataError, LimitError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, read, write
from vmmd.block.backend import BlockOp, Request
from vmmd.upstairs.core.slot_states import SlotMode
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)


@pytest.fixture
def lies(monkeypatch):
    """Id of a region: what its daemon does to its answer. Not by port: after a restart it may be
    given another one for data."""
    found = {}
    honest = BlockServicer.OpenSession

    async def open_session(self, request, context):
        opened = await honest(self, request, context)
        change = found.get(opened.region.id)
        if change is not None:
            change(opened)
        return opened

    # Before the daemons start: their servers keep the method that they find then.
    monkeypatch.setattr(BlockServicer, "OpenSession", open_session)
    return found


@pytest.fixture
async def daemons(tmp_path, lies):
    found = DownstairsSet(tmp_path, GEOMETRY, 3)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
def lie(daemons, lies):
    """Has the daemon of slot 1 answer otherwise; None: as it is."""

    def tell(change):
        lies[str(daemons.ids[1])] = change

    return tell


@pytest.fixture
async def upstairs(daemons):
    tracing = Tracing("machine", "test")
    found = RegionUpstairs(daemons.spec(uuid.uuid4(), 1), tracing=tracing)
    yield found
    await found.close()
    tracing.shutdown()


def version(opened):
    opened.data_version = 77


def geometry(opened):
    opened.region.geometry.extent_size = 32


def flags(opened):
    opened.extent_flags = b"\0"


def numbers(opened):
    opened.extent_flushes[:] = [2**64 - 1] * 8


def address(opened):
    opened.data_unix_path = ""
    opened.data_address = "no address at all"


def long_name(opened):
    opened.data_unix_path = ""
    opened.data_address = f"{'x' * 70}.example:1"


def long_path(opened):
    opened.data_unix_path = "/\0" + "x" * 300


def token(opened):
    opened.token = b"made up"


def full(_opened):
    raise DataError("the disk is full: make room", reason="NO_SPACE")


def too_many(_opened):
    raise LimitError("enough sessions: end one of them", limit="64")


def broken(_opened):
    raise ZeroDivisionError


TOLD = {
    version: "VERSION_MISMATCH",
    geometry: "GEOMETRY_MISMATCH",
    flags: "STAMPS_MALFORMED",
    numbers: "STAMPS_MALFORMED",
    address: "no address at all",
    long_name: "is not a host name",
    token: "TOKEN_UNKNOWN",
    full: "the disk is full",
    too_many: "enough sessions",
    broken: "internal error",
}


@pytest.mark.parametrize("change", TOLD, ids=lambda change: change.__name__)
async def test_it_is_not_taken_in_and_says_why(upstairs, lie, change):
    lie(change)
    activation = asyncio.create_task(upstairs.activate(timeout_seconds=30))
    await until(lambda: TOLD[change] in upstairs.status().slots[1].last_error)
    assert upstairs.status().state is UpstairsState.GO_ACTIVE
    assert not upstairs.status().slots[0].last_error
    lie(None)
    await activation
    await write(upstairs, 0, bytes(4096))
    await flush(upstairs)


async def test_a_path_for_data_that_cannot_be_is_not_needed(upstairs, lie):
    lie(long_path)
    await upstairs.activate(timeout_seconds=10)


async def test_what_nobody_foresaw_is_told_and_tried_again(upstairs, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("vmmd.upstairs.shell.slot_link.session_info", broken)
        activation = asyncio.create_task(upstairs.activate(timeout_seconds=30))
        await until(lambda: all("planted" in s.last_error for s in upstairs.status().slots))
    await activation


@pytest.mark.parametrize(
    ("change", "mode"), [(version, SlotMode.FAULTED), (full, SlotMode.OFFLINE)]
)
async def test_a_member_of_an_active_set(upstairs, daemons, lie, change, mode):
    await upstairs.activate(timeout_seconds=10)
    lie(change)
    port = daemons.daemons[1].place().port
    await daemons.stop(1)
    await write(upstairs, 3, b"\7" * 4096)
    with socket.socket() as somebody:
        # Its port for data is taken by then, and it is given another.
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", port))
        somebody.listen()
        await daemons.start(1)
    assert daemons.daemons[1].place().port != port
    await until(lambda: TOLD[change] in upstairs.status().slots[1].last_error)
    assert upstairs.status().slots[1].mode is mode
    lie(None)
    await until(lambda: all_active(upstairs))
    await flush(upstairs)
    assert await read(upstairs, 3, 1) == b"\7" * 4096
    assert (await upstairs.verify(read_data=True)).equal


async def test_an_effect_that_raises_ends_the_volume_and_nothing_else(upstairs, monkeypatch):
    """A device's mistake: its completion raises."""
    await upstairs.activate(timeout_seconds=10)
    data = b"\5" * 4096
    await write(upstairs, 0, data)
    await flush(upstairs)
    raised = asyncio.Event()

    def done(_completions):
        raised.set()
        raise ZeroDivisionError("planted")

    upstairs.submit([Request(BlockOp.WRITE, 1, 0, 1, data)], done)
    await asyncio.wait_for(raised.wait(), 10)
    await until(lambda: upstairs.status().state is UpstairsState.DISABLED)
    assert "ZeroDivisionError" in upstairs.status().reason
    await upstairs.activate(2, timeout_seconds=10)
    assert await read(upstairs, 0, 1) == data
