"""What NBD tools see of a replicated disk: its holes, and a file system through FUSE and a loop
device. No guest boots here, so no kernel for one is fetched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.guest.conftest import lacking
from tests.integration.cluster import MIB, Cluster
from tests.integration.volume import Volume

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOL_SECONDS = 60.0
HOLE = 3


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster.started(tmp_path_factory.mktemp("nbd") / "cluster") as started:
        yield started


async def tool(*words: str | Path) -> str:
    """What a tool printed; fails the test when the tool fails."""
    if shutil.which(str(words[0])) is None:
        lacking(f"{words[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TOOL_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    assert process.returncode == 0, f"{words}: {text}{errors.decode(errors='replace')}"
    return text


async def uri_of(volume: Volume) -> str:
    return str((await volume.info()).volume.nbd_uri)


async def written(uri: str, *commands: str) -> None:
    """Has qemu-io carry the commands out."""
    words = [word for command in commands for word in ("-c", command)]
    assert "failed" not in await tool("qemu-io", "-f", "raw", uri, *words)


async def mapped(uri: str) -> list[tuple[int, int, int]]:
    """(start, end, flags) as nbdinfo sees them, neighbours alike put together."""
    found: list[tuple[int, int, int]] = []
    for each in json.loads(await tool("nbdinfo", "--map", "--json", uri)):
        start, end = each["offset"], each["offset"] + each["length"]
        if found and found[-1][1:] == (start, each["type"]):
            start = found.pop()[0]
        found.append((start, end, each["type"]))
    return found


async def test_the_map_of_a_volume(volume: Volume) -> None:
    uri = await uri_of(volume)
    size = (await volume.info()).volume.total_bytes
    assert await mapped(uri) == [(0, size, HOLE)]
    await written(uri, "write -P 7 8M 1M", "write -z 20M 64k", "flush")
    await written(uri, f"write -P 9 {size - 4096} 4096")
    expected = [
        (0, 8 * MIB, HOLE), (8 * MIB, 9 * MIB, 0), (9 * MIB, 20 * MIB, HOLE),
        (20 * MIB, 20 * MIB + 65536, 0), (20 * MIB + 65536, size - 4096, HOLE),
        (size - 4096, size, 0),
    ]  # fmt: skip
    assert await mapped(uri) == expected
    described: list[dict[str, Any]] = json.loads(
        await tool("qemu-img", "map", "--output", "json", "-f", "raw", uri)
    )
    data = [(each["start"], each["start"] + each["length"]) for each in described if each["data"]]
    assert data == [(start, end) for start, end, kind in expected if kind == 0]
    assert all(each["zero"] is not each["data"] for each in described)
    await written(uri, "discard 8M 1M")
    assert (0, 20 * MIB, HOLE) in await mapped(uri)


async def test_copies_are_sparse_and_equal(volume: Volume, tmp_path: Path) -> None:
    uri = await uri_of(volume)
    await written(uri, "write -P 5 4M 2M", "write -P 6 40M 300k", "write -P 7 63M 1M")
    for name, words in (
        ("nbdcopy", ["nbdcopy", uri]),
        ("qemu-img", ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri]),
    ):
        copy = tmp_path / f"{name}.img"
        await tool(*words, copy)
        assert copy.stat().st_size == (await volume.info()).volume.total_bytes
        assert copy.stat().st_blocks * 512 <= 5 * MIB, name
        await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", copy, uri)
    await tool(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
        "--size=4m", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
    )  # fmt: skip


@contextlib.asynccontextmanager
async def fused(uri: str, file: Path) -> AsyncIterator[None]:
    """The disk as a file, by nbdfuse, which is asked to end and has to."""
    process = await asyncio.create_subprocess_exec(
        "nbdfuse", str(file), uri, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(os.path.ismount, file):
                assert process.returncode is None
                await asyncio.sleep(0.01)
        yield
    finally:
        if process.returncode is None:
            await tool("umount", file)
        async with asyncio.timeout(20):
            await process.wait()


@contextlib.asynccontextmanager
async def looped(file: Path) -> AsyncIterator[str]:
    # The disk takes whole blocks: the device has to ask for nothing smaller.
    words = ("losetup", "--sector-size", "4096", "--find", "--show")
    device = (await tool(*words, file)).strip()
    try:
        yield device
    finally:
        await tool("losetup", "--detach", device)


@contextlib.asynccontextmanager
async def mounted(device: str, place: Path) -> AsyncIterator[None]:
    await tool("mount", device, place)
    try:
        yield
    finally:
        await tool("umount", place)


async def need_fuse_and_loop(tmp_path: Path) -> None:
    """Skips where a process may not have them: containers mostly may not."""
    for program in ("nbdfuse", "losetup", "mkfs.ext4", "fsck.ext4"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a FUSE file system and a loop device need root and /dev/fuse")
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(MIB))
    try:
        async with looped(probe):
            pass
    except AssertionError as error:
        pytest.skip(f"no loop device can be had: {error}")


async def test_a_file_system_through_fuse_and_a_loop_device(volume: Volume, tmp_path: Path) -> None:
    await need_fuse_and_loop(tmp_path)
    uri, file, place = await uri_of(volume), tmp_path / "disk", tmp_path / "mnt"
    file.touch()
    place.mkdir()
    content = os.urandom(6 * MIB)
    async with fused(uri, file), looped(file) as device:
        await tool("mkfs.ext4", "-q", device)
        async with mounted(device, place):
            (place / "kept").write_bytes(content)
            (place / "gone").write_bytes(bytes(MIB))
            (place / "gone").unlink()
    # Through a connection of its own: nothing of it is in this kernel's memory.
    async with fused(uri, file), looped(file) as device:
        await tool("fsck.ext4", "-f", "-n", device)
        async with mounted(device, place):
            assert (place / "kept").read_bytes() == content
            assert not (place / "gone").exists()
    await volume.verify()
