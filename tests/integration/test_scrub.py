"""Disks over read-only parents on real daemons: filled, freed of them, members replaced.

What a disk must hold at every moment is known here byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from tests.integration.cluster import (
    BLOCK_SIZE,
    BLOCKS_PER_EXTENT,
    EXTENT_COUNT,
    LOOPBACK,
    MIB,
    Cluster,
    Program,
    run,
    until,
)
from tests.integration.nbd_client import NbdClient
from tests.integration.volume import VOLUME_ACTIVE, Volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

SIZE = EXTENT_COUNT * BLOCKS_PER_EXTENT * BLOCK_SIZE
PARENT_BYTES = 24 * MIB
SLOW = 2 * MIB
RUNNING = disk_pb.SCRUB_STATE_RUNNING


class Layered(Volume):
    """A disk over a parent; `parts` are the addresses of its regions, three by three."""

    def __init__(
        self, cluster: Cluster, downstairs: Sequence[Program], parent: dict[str, Any], regions: int
    ) -> None:
        super().__init__(cluster, downstairs)
        self.parent: dict[str, Any] | None = parent
        self.parts = [
            [each.address for each in self.downstairs[3 * number : 3 * number + 3]]
            for number in range(regions)
        ]

    def vcr(self, generation: int, _targets: Sequence[str] = (), **shape: int) -> dict[str, Any]:
        """Of all regions, whatever the targets of the first."""
        whole = super().vcr(generation, self.parts[0], **shape)
        first = whole["sub_volumes"][0]
        whole["sub_volumes"] = [
            {**first, "opts": {**first["opts"], "target": list(part)}} for part in self.parts
        ]
        if self.parent is not None:
            whole["read_only_parent"] = self.parent
        return whole

    async def scrub(self) -> disk_pb.Scrub:
        """Its scrub now."""
        (found,) = (await self.info()).scrubs
        return found

    async def uri(self) -> str:
        """Where the disk is exported, once it is active."""
        disk = await until(self.info, lambda one: one.volume.state == VOLUME_ACTIVE)
        return disk.volume.nbd_uri

    async def content(self) -> bytes:
        """All of the disk."""
        return await asyncio.to_thread(_read, await self.uri())

    async def write(self, content: bytearray, *offsets: int) -> None:
        """Writes a block at each offset, to the disk and to what it must hold; then flushes."""
        blocks = {offset: random.randbytes(BLOCK_SIZE) for offset in offsets}
        for offset, data in blocks.items():
            content[offset : offset + BLOCK_SIZE] = data
        await asyncio.to_thread(_write, await self.uri(), blocks)


def _read(uri: str) -> bytes:
    with NbdClient(uri) as client:
        return b"".join(client.read(at, MIB) for at in range(0, client.size, MIB))


def _write(uri: str, blocks: dict[int, bytes]) -> None:
    with NbdClient(uri) as client:
        for offset, data in blocks.items():
            client.write(offset, data)
        client.flush()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("scrubs") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@asynccontextmanager
async def layered(
    cluster: Cluster, parent: dict[str, Any], *, regions: int = 1, spares: int = 0
) -> AsyncIterator[Layered]:
    """A machine that runs with a disk over the parent."""
    programs = [cluster.downstairs() for _ in range(3 * regions + spares)]
    volume = Layered(cluster, programs, parent, regions)
    try:
        await asyncio.gather(*(program.start() for program in programs))
        await volume.create()
        await volume.run()
        yield volume
    finally:
        with contextlib.suppress(StairwellError, AssertionError):
            await volume.delete()
        cluster.remove(volume.downstairs)


def file_parent(path: Path) -> dict[str, Any]:
    """A file of random blocks."""
    path.write_bytes(random.randbytes(PARENT_BYTES))
    return {
        "type": "file", "id": str(uuid.uuid4()), "block_size": BLOCK_SIZE, "path": str(path),
    }  # fmt: skip


async def killed_and_back(program: Program) -> None:
    """As a host that loses power."""
    program.kill()
    await program.start()


@pytest.mark.long
async def test_a_scrub_outlives_every_daemon_and_the_parent_is_not_needed_any_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    base = tmp_path / "base.img"
    async with layered(cluster, file_parent(base)) as volume:
        content = bytearray(base.read_bytes().ljust(SIZE, b"\0"))
        await volume.write(content, 0, 5 * MIB, PARENT_BYTES - BLOCK_SIZE, 30 * MIB)
        scrub = ("disk", "scrub", volume.disk)
        (await cluster.cli(*scrub, "--limit", str(SLOW), "--no-wait")).good()
        await until(volume.scrub, lambda one: one.bytes_done >= MIB)
        await volume.write(content, MIB // 2, 3 * MIB, 20 * MIB)

        await killed_and_back(cluster.controlplane)
        found = await until(volume.scrub, lambda one: one.bytes_done >= 3 * MIB)
        assert (found.state, found.bytes_per_second_max) == (RUNNING, SLOW)

        await killed_and_back(cluster.vmmd)
        await until(volume.scrub, lambda one: bool(one.blocked_on))
        await volume.uri()
        found = await until(volume.scrub, lambda one: not one.blocked_on)
        assert found.state == RUNNING
        assert found.bytes_done >= 3 * MIB, "what is shown does not fall"
        await volume.write(content, 4 * MIB, 21 * MIB, 21 * MIB + BLOCK_SIZE)
        assert await volume.content() == content

        done = (await cluster.cli(*scrub, "--limit", "0")).good()
        assert "has no read-only parent there any more" in done.out
        disk = await volume.info()
        assert not disk.vcr.HasField("read_only_parent")
        assert disk.recorded_generation == 2
        assert not disk.volume.sources
        assert await volume.content() == content

        base.unlink()
        await killed_and_back(cluster.vmmd)
        assert await volume.content() == content
        await volume.settled()
        await volume.verify()


@pytest.mark.long
async def test_a_scrub_that_is_stopped_goes_on_from_what_was_copied(
    cluster: Cluster, tmp_path: Path
) -> None:
    base = tmp_path / "base.img"
    async with layered(cluster, file_parent(base)) as volume:
        content = base.read_bytes().ljust(SIZE, b"\0")
        scrub = ("disk", "scrub", volume.disk)
        (await cluster.cli(*scrub, "--limit", str(SLOW), "--no-wait")).good()
        await until(volume.scrub, lambda one: one.bytes_done >= MIB)
        stopped = (await cluster.cli("disk", "scrub-stop", volume.disk)).good()
        assert "keeps its parent" in stopped.out
        assert (await volume.info()).vcr.HasField("read_only_parent")
        assert await volume.content() == content
        done = (await cluster.cli(*scrub, "--output", "json")).good()
        assert done.json["state"] == "done"
        (await cluster.cli("disk", "scrub-stop", volume.disk)).bad("SCRUB_DONE")
        assert await volume.content() == content


async def test_a_parent_is_not_dropped_by_hand_and_not_while_a_replacement_runs(
    cluster: Cluster, tmp_path: Path
) -> None:
    base = tmp_path / "base.img"
    async with layered(cluster, file_parent(base), spares=1) as volume:
        content = bytearray(base.read_bytes().ljust(SIZE, b"\0"))
        await volume.write(content, *range(0, 48 * MIB, 3 * MIB))
        with_parent, volume.parent = volume.parent, None
        with pytest.raises(StairwellError) as caught:
            await volume.replace(volume.vcr(2))
        assert caught.value.reason == "PARENT_NOT_SCRUBBED"

        volume.parent = with_parent
        # A file cannot be compared, so nothing but the end of the scrub changes such a request.
        volume.parts[0][2] = volume.downstairs[3].address
        with pytest.raises(StairwellError) as caught:
            await volume.replace(volume.vcr(2))
        assert caught.value.reason == "NOT_COMPARABLE"
        (await cluster.cli("disk", "scrub", volume.disk)).good()

        volume.parent = None
        answer = await volume.replace(volume.vcr(2))
        await volume.done(answer.replacement_id)
        assert await volume.content() == content
        await volume.verify()


# ----- a parent of regions


def again_read_only(cluster: Cluster, program: Program, folder: Path | None = None) -> Program:
    """A daemon at another port that serves the region of a stopped one, or a clone, read-only."""
    place = folder or Path(program.command[program.command.index("-d") + 1])
    fresh = cluster.downstairs()
    fresh.command = [
        "downstaird", "run", "-d", str(place), "-p", str(fresh.port), "-a", LOOPBACK,
        "--mode", "ro",
    ]  # fmt: skip
    return fresh


async def region_parent(cluster: Cluster) -> tuple[dict[str, Any], bytearray, list[Program]]:
    """A read-only region that was written by a machine of its own: (request, content, daemons)."""
    programs = [cluster.downstairs() for _ in range(3)]
    maker = Volume(cluster, programs)
    await asyncio.gather(*(program.start() for program in programs))
    await maker.create()
    await maker.run()
    content = bytearray(SIZE)
    disk = await until(maker.info, lambda one: one.volume.state == VOLUME_ACTIVE)
    blocks = {at: random.randbytes(BLOCK_SIZE) for at in range(0, SIZE, MIB)}
    await asyncio.to_thread(_write, disk.volume.nbd_uri, blocks)
    for at, data in blocks.items():
        content[at : at + BLOCK_SIZE] = data
    await maker.stop()
    await maker.delete()
    cluster.remove(programs)
    served = [again_read_only(cluster, program) for program in programs]
    await asyncio.gather(*(program.start() for program in served))
    request = maker.vcr(1, [program.address for program in served])["sub_volumes"][0]
    request["opts"]["read_only"] = True
    return request, content, served


@pytest.mark.long
async def test_members_of_a_second_region_and_of_a_parent_are_replaced(
    cluster: Cluster, tmp_path: Path
) -> None:
    parent, below, served = await region_parent(cluster)
    async with layered(cluster, parent, regions=2, spares=1) as volume:
        content = bytearray(bytes(below).ljust(2 * SIZE, b"\0"))
        await volume.write(content, 7 * MIB, SIZE - BLOCK_SIZE, SIZE, SIZE + 9 * MIB)
        assert await volume.content() == content

        volume.parts[1][1] = volume.downstairs[6].address
        answer = await volume.replace(volume.vcr(2))
        assert answer.replacement.region_path == "sub_volumes[1]"
        await volume.done(answer.replacement_id)

        copy = tmp_path / "clone"
        (await run("downstaird", "clone", "-d", copy, "-u", uuid.uuid4(), "--source",
                   served[0].address)).good()  # fmt: skip
        fresh = again_read_only(cluster, served[0], copy)
        await fresh.start()
        # A member of the parent that is lost for good.
        served[2].kill()
        parent["opts"]["target"][2] = fresh.address
        answer = await volume.replace(volume.vcr(2))
        assert answer.path == "read_only_parent.opts.target[2]"
        await volume.done(answer.replacement_id)
        again = await volume.replace(volume.vcr(2))
        assert again.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
        assert await volume.content() == content
        served.append(fresh)

        (await cluster.cli("disk", "scrub", volume.disk)).good()
        cluster.remove(served)
        volume.parent = None
        await killed_and_back(cluster.vmmd)
        assert await volume.content() == content
        await volume.settled()
        report = (await cluster.cli("disk", "verify", volume.disk, "--read-data")).good()
        assert "all members agree" in report.out
