"""Clones of regions that a daemon serves read-only: equal in data and stamps, whole or nothing."""

import asyncio
import uuid

import numpy as np
import pytest

from downstaird.cloning import Cloning, ask_source
from downstaird.config import CreateOptions
from downstaird.core.clone_plan import Expected
from downstaird.core.engine import Ownership
from downstaird.core.region import Region
from downstaird.regions import CLONE_MARKER, create_region, open_clone, open_region
from downstaird.store.files import FileDisk
from stairlib.model.cipher import DEFAULT_CIPHER
from stairlib.model.context import encrypted_check, plain_contexts
from stairlib.model.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    StateError,
    UnavailableError,
)
from stairlib.model.geometry import Geometry
from stairlib.rpc.tls import TlsFiles
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import OpKind
from tests.certificates import Authority

GEOMETRY = Geometry(block_size=4096, blocks_per_extent=256, extent_count=8)
BLOCK = GEOMETRY.block_size
EXTENTS = GEOMETRY.extent_count
PER_EXTENT = GEOMETRY.blocks_per_extent
OWNER = uuid.UUID(int=77)


def sealed_contexts(data):
    """Contexts as of encrypted blocks, with any nonces and tags."""
    rows = []
    for at in range(0, len(data), BLOCK):
        rest = np.random.default_rng(at).bytes(28)
        check = encrypted_check(rest, data[at : at + BLOCK])
        rows.append(check.to_bytes(4, "little") + rest)
    return np.frombuffer(b"".join(rows), dtype="<u8").reshape(-1, 4)


def fill(place, *, generation=3):
    """Writes and flushes into every second extent of a region that nobody serves."""
    region = Region.open(FileDisk(place))
    region.promote(Ownership(OWNER, uuid.uuid4(), generation))
    for number, extent in enumerate(range(0, EXTENTS, 2)):
        data = np.random.default_rng(extent).bytes((70 + extent) * BLOCK)
        encrypted = region.definition.encrypted
        contexts = sealed_contexts(data) if encrypted else plain_contexts(data, BLOCK)
        region.write(extent * PER_EXTENT + 5, contexts, data)
        work = region.begin_flush(10 + number, generation)
        work.run()
        region.finish_flush(work, None)
    region.close()


@pytest.fixture
async def source(serve, tmp_path):
    """A daemon that serves a region with data in every second extent, read-only."""
    place = tmp_path / "source"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, cipher=""))
    fill(place)
    return await serve(place, read_only=True)


@pytest.fixture
def tracing():
    found = Tracing("clone", "test")
    yield found
    found.shutdown()


@pytest.fixture
def clone(source, tracing, tmp_path):
    async def run(
        place=None,
        *,
        region_id=None,
        progress=lambda _: None,
        expected=None,
        address=None,
        tls=None,
    ):
        place = tmp_path / "clone" if place is None else place
        address = address or source.address
        region_id, expected = region_id or uuid.uuid4(), expected or Expected()
        task = await ask_source(address, tracing, region_id, expected, tls)
        cloning = Cloning(task, open_clone(place, task.definition), tracing, progress)
        return await asyncio.wait_for(cloning.run(), 60)

    return run


async def same(serve, source, place, **session):
    """Whether the clone, served beside its source, gives the same for everything."""
    copy = await serve(place, read_only=True)
    reader = uuid.uuid4()
    session["read_only"] = True
    mine = await copy.session(reader, **session)
    theirs = await source.session(reader, **session)
    assert await mine.digests(EXTENTS) == await theirs.digests(EXTENTS)
    assert (await mine.states()).tolist() == (await theirs.states()).tolist()
    one = await mine.one(OpKind.READ, offset=0, length=PER_EXTENT)
    other = await theirs.one(OpKind.READ, offset=0, length=PER_EXTENT)
    assert one.data == other.data
    return copy


async def test_a_clone_has_data_and_stamps_of_its_source(serve, source, clone, tmp_path):
    region_id = uuid.uuid4()
    seen = []
    done = await clone(region_id=region_id, progress=seen.append)
    assert (done.extents_done, done.extents_total) == (EXTENTS, EXTENTS)
    assert done.bytes_copied == sum(70 + e for e in range(0, EXTENTS, 2)) * BLOCK
    assert [each.extents_done for each in seen] == list(range(1, EXTENTS + 1))
    copy = await same(serve, source, tmp_path / "clone")
    region = await copy.get()
    assert region.id == str(region_id)
    assert region.written
    assert (region.owner_id, region.promoted_generation) == (str(OWNER), 3)
    assert region.incomplete_extents == 0
    # What was never written takes no space.
    assert region.stored_bytes < GEOMETRY.total_bytes // 2
    assert not (tmp_path / "clone" / CLONE_MARKER).exists()


async def test_a_clone_of_an_empty_region_is_empty(serve, clone, tmp_path):
    place = tmp_path / "empty"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, cipher=""))
    empty = await serve(place, read_only=True)
    done = await clone(address=empty.address)
    assert done.bytes_copied == 0
    copy = await same(serve, empty, tmp_path / "clone")
    assert not (await copy.get()).written


async def test_a_clone_of_encrypted_blocks_needs_no_key(serve, clone, tmp_path):
    place = tmp_path / "sealed"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, DEFAULT_CIPHER))
    fill(place)
    sealed = await serve(place, read_only=True)
    await clone(address=sealed.address, expected=Expected(encrypted=True))
    copy = await same(serve, sealed, tmp_path / "clone", encrypted=True)
    assert (await copy.get()).encrypted
    assert (await copy.get()).cipher == DEFAULT_CIPHER


async def test_a_clone_is_taken_for_writing_by_its_source_s_set_alone(
    serve, clone, upstairs, tmp_path
):
    await clone()
    copy = await serve(tmp_path / "clone")
    with pytest.raises(StateError) as refused:
        await copy.open(upstairs, generation=9)
    assert refused.value.reason == "REGION_IN_USE"
    with pytest.raises(StateError) as refused:
        await copy.open(OWNER, generation=3)
    assert refused.value.reason == "GENERATION_TOO_LOW"
    await copy.open(OWNER, generation=4)


async def test_a_clone_of_what_nobody_owns_is_taken_for_writing_by_nobody(
    serve, clone, upstairs, tmp_path
):
    place = tmp_path / "found"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, cipher=""))
    fill(place)
    region = Region.open(FileDisk(place))
    region.promote(Ownership(None, None, 0))
    region.close()
    found = await serve(place, read_only=True)
    await clone(address=found.address)
    copy = await serve(tmp_path / "clone")
    with pytest.raises(StateError) as refused:
        await copy.open(upstairs)
    assert refused.value.reason == "REGION_NOT_BLANK"


async def test_a_source_that_is_served_for_writing_is_refused(serve, clone, tmp_path):
    writable = await serve()
    with pytest.raises(StateError) as refused:
        await clone(address=writable.address)
    assert refused.value.reason == "SOURCE_NOT_READ_ONLY"
    assert not (tmp_path / "clone").exists()


async def test_the_source_itself_is_refused(source, clone):
    with pytest.raises(StateError) as refused:
        await clone(region_id=uuid.UUID((await source.get()).id))
    assert refused.value.reason == "SAME_REGION"


async def test_a_source_of_another_geometry_is_refused(clone):
    with pytest.raises(StateError) as refused:
        await clone(expected=Expected(block_size=512))
    assert refused.value.reason == "REGION_INCOMPATIBLE"


async def test_a_source_nobody_answers_for_is_named(clone):
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        await clone(address="127.0.0.1:1")


async def test_directories_that_hold_something_are_refused(clone, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter").write_text("mine")
    with pytest.raises(StateError) as refused:
        await clone(used)
    assert refused.value.reason == "DIRECTORY_NOT_EMPTY"
    assert [each.name for each in used.iterdir()] == ["letter"]
    await clone()
    with pytest.raises(AlreadyExistsError):
        await clone()


async def interrupted(clone, region_id, count=3):
    task = asyncio.ensure_future(
        clone(
            region_id=region_id,
            progress=lambda state: state.extents_done == count and task.cancel(),
        )
    )
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_interrupted_clone_is_no_region_and_goes_on(serve, source, clone, tmp_path):
    region_id, place = uuid.uuid4(), tmp_path / "clone"
    await interrupted(clone, region_id)
    assert not (place / "region.json").exists()
    for attempt in (
        lambda: open_region(place),
        lambda: open_region(place, read_only=True),
        lambda: create_region(CreateOptions(place, region_id, GEOMETRY, cipher="")),
    ):
        with pytest.raises(StateError) as refused:
            attempt()
        assert refused.value.reason == "CLONE_UNFINISHED"
    with pytest.raises(InvalidRequestError, match="is not a region"):
        Region.open(FileDisk(place))
    with pytest.raises(StateError) as refused:
        await clone(region_id=uuid.uuid4())
    assert refused.value.reason == "CLONE_DIFFERS"
    await clone(region_id=region_id)
    await same(serve, source, place)


async def test_what_was_flushed_is_not_fetched_again(serve, source, clone, tmp_path, monkeypatch):
    single = [range(extent, extent + 1) for extent in range(EXTENTS)]
    monkeypatch.setattr("downstaird.cloning.extent_steps", lambda _definition: single)
    region_id = uuid.uuid4()
    await interrupted(clone, region_id, count=5)
    done = await clone(region_id=region_id)
    # Extents 0 and 2 were flushed for sure; 4 may have been.
    assert done.bytes_copied in ((76 + 74) * BLOCK, 76 * BLOCK)
    await same(serve, source, tmp_path / "clone")


async def test_one_interrupted_before_its_first_file_begins_anew(serve, source, clone, tmp_path):
    place = tmp_path / "clone"
    place.mkdir()
    (place / CLONE_MARKER).touch()
    (place / "data").write_bytes(b"what a run left that was killed")
    await clone()
    await same(serve, source, place)


async def test_a_source_that_goes_away_ends_it_and_another_serves(serve, source, clone, tmp_path):
    region_id, place = uuid.uuid4(), tmp_path / "clone"
    stopping = []

    def stop(state):
        if not stopping:
            stopping.append(asyncio.ensure_future(source.daemon.stop()))

    with pytest.raises(UnavailableError) as refused:
        await clone(region_id=region_id, progress=stop)
    assert source.address in refused.value.message
    await stopping[0]
    again = await serve(source.place, read_only=True)
    await clone(region_id=region_id, address=again.address)
    await same(serve, again, place)


async def test_a_source_that_was_written_to_meanwhile_is_found_out(source, clone, tmp_path):
    """Its stamps are asked for again at the end."""

    def move(state):
        if state.extents_done == EXTENTS:
            source.daemon.host.engine.extents._seen["flush"][0] += 1

    with pytest.raises(StateError) as refused:
        await clone(progress=move)
    assert refused.value.reason == "SOURCE_CHANGED"
    assert not (tmp_path / "clone" / "region.json").exists()


async def test_two_at_once_into_one_directory_are_kept_apart(source, clone, tmp_path):
    region_id = uuid.uuid4()
    outcomes = await asyncio.gather(
        clone(region_id=region_id), clone(region_id=region_id), return_exceptions=True
    )
    errors = [each for each in outcomes if isinstance(each, Exception)]
    assert len(errors) == 1
    assert errors[0].reason in ("REGION_LOCKED", "ALREADY_EXISTS")


def test_stamps_are_those_of_flushes(tmp_path):
    """What `fill` relies on: each extent was stamped by a flush of its own."""
    place = tmp_path / "region"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, cipher=""))
    fill(place)
    region = Region.open(FileDisk(place))
    states = region.extent_states()
    region.close()
    assert states.flushes.tolist() == [10, 0, 11, 0, 12, 0, 13, 0]
    assert np.unique(states.generations).tolist() == [0, 3]


async def test_a_source_that_speaks_tls_is_cloned_with_certificates(serve, source, clone, tmp_path):
    authority = Authority(tmp_path / "certificates")
    await source.daemon.stop()
    secure = await serve(source.place, read_only=True, tls=authority.issue("source", "127.0.0.1"))
    with pytest.raises(UnavailableError) as plain:
        await clone(address=secure.address)
    assert plain.value.reason == "TLS_NEEDED"
    assert "--cert-pem, --key-pem, --root-cert-pem" in plain.value.message
    assert not (tmp_path / "clone").exists()
    stranger = Authority(tmp_path / "stranger").issue("cloner")
    files = authority.issue("cloner")
    known = TlsFiles(stranger.cert, stranger.key, files.root)
    with pytest.raises(UnavailableError) as refused:
        await clone(address=secure.address, tls=known)
    assert refused.value.reason == "TLS_REFUSED"
    done = await clone(address=secure.address, tls=files)
    assert done.extents_done == EXTENTS
    await same(serve, secure, tmp_path / "clone")
