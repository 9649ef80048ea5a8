"""From a construction request to backends: shape, paths, sizes, and what is refused."""

from __future__ import annotations

import uuid

import pytest

from stairlib.model.construction import FileSpec, RegionOptions, RegionSpec, UrlSpec, VolumeSpec
from stairlib.model.errors import InvalidRequestError, NotFoundError, StateError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from vmmd.block.concatenation import Concatenation
from vmmd.block.file import FileBackend
from vmmd.block.overlay import Overlay, ReadOnlyView
from vmmd.block.tree import build
from vmmd.upstairs.shell.runner import RegionUpstairs


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


def region(first_port=1000, blocks=8, block_size=512):
    targets = tuple(f"127.0.0.1:{first_port + number}" for number in range(3))
    return RegionSpec(Geometry(block_size, blocks, 1), RegionOptions(uuid.uuid4(), targets), 1)


def volume(*subs, parent=None, block_size=512):
    return VolumeSpec(uuid.uuid4(), block_size, subs, parent)


def file_of(path, size, block_size=512):
    path.write_bytes(bytes(size))
    return FileSpec(uuid.uuid4(), block_size, str(path))


async def built(spec, tracing):
    tree = await build(spec, tracing=tracing)
    await tree.close()
    return tree


async def test_one_region_is_used_as_it_is(tracing):
    for spec, path in ((region(), ""), (volume(region()), "sub_volumes[0]")):
        tree = await built(spec, tracing)
        assert isinstance(tree.root, RegionUpstairs)
        assert list(tree.regions) == [path]


async def test_the_parts_are_named_as_in_the_request(tracing):
    inner = volume(region(2000), parent=region(3000, blocks=4))
    spec = volume(region(), inner, parent=volume(region(4000), region(5000), parent=region(6000)))
    tree = await built(spec, tracing)
    assert list(tree.regions) == [
        "sub_volumes[0]",
        "sub_volumes[1].sub_volumes[0]",
        "sub_volumes[1].read_only_parent",
        "read_only_parent.sub_volumes[0]",
        "read_only_parent.sub_volumes[1]",
        "read_only_parent.read_only_parent",
    ]
    assert list(tree.overlays) == ["sub_volumes[1]", "read_only_parent", ""]
    assert isinstance(tree.root, Overlay)
    assert isinstance(tree.root.front, Concatenation)
    assert tree.root.info.block_count == 16
    assert tree.overlays["sub_volumes[1]"].covered == 4
    below = tree.below("read_only_parent")
    assert list(below.regions) == list(tree.regions)[3:]
    assert list(below.overlays) == ["read_only_parent"]
    tree.remove(below)
    assert list(tree.regions) == [
        "sub_volumes[0]",
        "sub_volumes[1].sub_volumes[0]",
        "sub_volumes[1].read_only_parent",
    ]


async def test_a_volume_of_a_parent_alone_is_as_large_and_takes_no_writes(tracing):
    tree = await built(volume(parent=region(blocks=4)), tracing)
    assert isinstance(tree.root, ReadOnlyView)
    assert tree.root.info.block_count == 4
    assert not tree.overlays


async def test_files_are_opened_for_writing_only_where_they_may_be_written(tracing, tmp_path):
    own, parents = file_of(tmp_path / "own", 2048), file_of(tmp_path / "parents", 1024)
    tree = await built(volume(own, parent=volume(parents)), tracing)
    assert not tree.sources["sub_volumes[0]"].info.read_only
    assert tree.sources["read_only_parent.sub_volumes[0]"].info.read_only
    assert isinstance(tree.sources["sub_volumes[0]"], FileBackend)
    assert tree.root.info.block_count == 4


async def test_a_file_has_one_writer_or_any_number_of_readers(tracing, tmp_path):
    file = file_of(tmp_path / "image", 2048)
    reader = volume(region(), parent=file)
    first = await build(reader, tracing=tracing)
    second = await build(reader, tracing=tracing)
    for spec in (file, volume(file, parent=file)):
        with pytest.raises(StateError, match="in use by another disk") as refused:
            await build(spec, tracing=tracing)
        assert refused.value.reason == "FILE_IN_USE"
    await first.close()
    await second.close()
    writer = await build(file, tracing=tracing)
    for spec in (file, reader):
        with pytest.raises(StateError, match="in use by another disk"):
            await build(spec, tracing=tracing)
    await writer.close()
    await built(reader, tracing)


@pytest.mark.parametrize(
    "spec",
    [
        volume(region(block_size=4096)),
        volume(region(), region(block_size=4096)),
        volume(region(), parent=region(block_size=4096)),
        volume(region(), parent=volume(region(block_size=4096))),
        volume(volume(region(block_size=4096), block_size=4096)),
    ],
)
async def test_children_have_the_block_size_of_their_volume(spec, tracing):
    with pytest.raises(InvalidRequestError, match="must be 512") as refused:
        await build(spec, tracing=tracing)
    assert refused.value.violations[0].field.endswith("block_size")


async def test_fields_are_named_by_their_place_in_the_request(tracing, tmp_path):
    folder = FileSpec(uuid.uuid4(), 512, str(tmp_path))
    with pytest.raises(InvalidRequestError) as refused:
        await build(volume(region(), parent=volume(folder)), tracing=tracing)
    assert [each.field for each in refused.value.violations] == [
        "read_only_parent.sub_volumes[0].path"
    ]


async def test_what_cannot_be_built_names_the_part(tracing, tmp_path):
    missing = FileSpec(uuid.uuid4(), 512, str(tmp_path / "missing"))
    odd = file_of(tmp_path / "odd", 1000)
    cases = [
        (volume(), InvalidRequestError, "sub_volumes is empty"),
        (volume(volume()), InvalidRequestError, r"sub_volumes\[0\].sub_volumes is empty"),
        (volume(region(), parent=missing), NotFoundError, "read_only_parent: .*missing"),
        (
            volume(region(), parent=FileSpec(uuid.uuid4(), 512, str(tmp_path))),
            InvalidRequestError,
            "read_only_parent: .*neither a file nor a block device",
        ),
        (volume(odd), InvalidRequestError, r"sub_volumes\[0\]: .*1000 bytes"),
        (
            volume(UrlSpec(uuid.uuid4(), 512, "http://127.0.0.1:1/x")),
            UnavailableError,
            r"sub_volumes\[0\]: http",
        ),
    ]
    for spec, kind, words in cases:
        with pytest.raises(kind, match=words):
            await build(spec, tracing=tracing)
