"""`stairwell bundle` of a real cluster: what is in it, and what is not."""

from __future__ import annotations

import asyncio
import json
import stat
import tarfile
from pathlib import Path

import pytest

from tests.integration.cluster import LOOPBACK, Cluster, free_ports
from tests.integration.volume import fresh_volume
from tests.integration.watched_cluster import WatchedCluster

pytestmark = pytest.mark.processes


def bundled_files(archive: Path) -> dict[str, bytes]:
    """The files of a bundle by their names below its folder."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
    return found


async def bundled(cluster: Cluster, archive: Path, *words: str) -> dict[str, bytes]:
    answer = (await cluster.cli("--output", "json", "bundle", "--file", archive, *words)).good()
    told = answer.json
    found = await asyncio.to_thread(bundled_files, archive)
    assert (told["file"], told["files"]) == (str(archive), len(found))
    return found


async def test_what_happened_is_in_it_and_what_is_away_is_named(tmp_path: Path) -> None:
    cluster = WatchedCluster(tmp_path / "cluster")
    try:
        await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
        async with fresh_volume(cluster) as volume:
            await volume.fill(1 << 20)
            answer = await volume.replace()
            await volume.done(answer.replacement_id)
            (vmmd,) = cluster.targets["stairwell-vmmd"]
            nobody = f"{LOOPBACK}:{free_ports(1)}"
            archive = tmp_path / "one.tar.gz"
            found = await bundled(cluster, archive, "--metrics", vmmd, "--metrics", nobody)
            assert stat.S_IMODE(archive.stat().st_mode) == 0o600
            (disk,) = json.loads(found["disks.json"])
            assert disk["name"] == volume.disk
            assert [slot["slot"] for slot in disk["volume"]["regions"][0]["slots"]] == [0, 1, 2]
            story = json.loads(found[f"replacements/{answer.replacement_id}.json"])
            events = [each["event"] for each in story["replacement"]["transitions"]]
            assert events[-1] == "Retired"
            trace = json.loads(found[f"traces/{answer.replacement_id}.otlp.json"])
            assert len(trace["resourceSpans"]) >= 3
            assert json.loads(found[f"history/{volume.disk}.json"])["samples"]
            fleet = json.loads(found["fleet/downstairs.json"])["downstairs"]
            assert volume.spare.address in [each["address"] for each in fleet]
            metrics = found[f"metrics/{vmmd.replace(':', '_')}.txt"].decode()
            assert f'disk="{volume.disk}"' in metrics
            assert nobody.replace(":", "_") in found["missing.txt"].decode()
            refused = await cluster.cli("bundle", "--file", archive)
            refused.bad("exists already")
    finally:
        await cluster.close()


async def test_with_nobody_there_it_says_so_and_leaves_no_file(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    archive = tmp_path / "none.tar.gz"
    try:
        (await cluster.cli("bundle", "--file", archive)).bad(cluster.controlplane.address)
    finally:
        await cluster.close()
    assert not archive.exists()
