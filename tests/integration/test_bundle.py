"""`stairwell bundle` of a real cluster: what is in it, and what is not."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from tests.integration.bundles import bundled_files, configurations, settings
from tests.integration.cluster import LOOPBACK, Cluster
from tests.integration.volume import fresh_volume
from tests.integration.watched_cluster import WatchedCluster
from tests.ports import free_ports
from tests.postgres_server import PASSWORD, PostgresServer

pytestmark = pytest.mark.processes


async def bundled(cluster: Cluster, archive: Path, *words: str) -> dict[str, bytes]:
    answer = (await cluster.cli("--output", "json", "bundle", "--file", archive, *words)).good()
    told = answer.json
    found = await asyncio.to_thread(bundled_files, archive)
    assert (told["file"], told["files"]) == (str(archive), len(found))
    return found


async def test_what_happened_is_in_it_and_what_is_away_is_named(tmp_path: Path) -> None:
    cluster = WatchedCluster(tmp_path / "cluster")
    (cluster.folder / "server.toml").write_text('engine = "none"\n')
    try:
        await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
        async with fresh_volume(cluster) as volume:
            await volume.fill(1 << 20)
            answer = await volume.replace()
            await volume.done(answer.replacement_id)
            (vmmd,) = cluster.targets["stairwell-vmmd"]
            nobody = f"{LOOPBACK}:{free_ports(1)}"
            archive = tmp_path / "one.tar.gz"
            retired = volume.downstairs[2]
            retired.kill()
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
            missing = found["missing.txt"].decode()
            assert nobody.replace(":", "_") in missing
            assert f"configurations.json: downstairs at {retired.address}: cannot reach" in missing
            told_of = configurations(found)
            assert told_of.keys() == {
                cluster.controlplane.address, cluster.vmmd.address,
                *(each.address for each in volume.downstairs),
            }  # fmt: skip
            own, below = told_of[cluster.controlplane.address], told_of[cluster.vmmd.address]
            assert (own["service"], below["service"]) == ("controlplane", "vmmd")
            assert (
                own["version"] == below["version"] == json.loads(found["about.json"])["stairwell"]
            )
            assert settings(own)["vmmd"] == (cluster.vmmd.address, "flag", "--vmmd")
            assert settings(own)["lease-seconds"] == ("10", "default", "")
            config = str(cluster.folder / "server.toml")
            assert settings(below)["engine"] == ("none", "file", config)
            assert settings(below)["metrics"] == (vmmd, "flag", "--metrics")
            spare = told_of[volume.spare.address]
            assert settings(spare)["port"] == (str(volume.spare.port), "flag", "--port")
            refused = await cluster.cli("bundle", "--file", archive)
            refused.bad("exists already")
    finally:
        await cluster.close()


@pytest.mark.postgres
async def test_the_database_is_in_it_without_its_password(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url, key = postgres.new_database(), "5a" * 32
    assert PASSWORD in url
    environment = {"STAIRWELL_DATABASE": url, "STAIRWELL_SECRET_KEY": key}
    cluster = Cluster(tmp_path / "cluster", environment)
    try:
        await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
        found = await bundled(cluster, tmp_path / "one.tar.gz")
    finally:
        await cluster.close()
    told = settings(configurations(found)[cluster.controlplane.address])
    shown = (url.replace(PASSWORD, "***"), "environment", "STAIRWELL_DATABASE")
    assert told["database"] == shown
    assert told["STAIRWELL_SECRET_KEY"] == ("***", "environment", "STAIRWELL_SECRET_KEY")
    everything = b"".join(found.values()).decode()
    assert PASSWORD not in everything
    assert key not in everything


async def test_with_nobody_there_it_says_so_and_leaves_no_file(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    archive = tmp_path / "none.tar.gz"
    try:
        (await cluster.cli("bundle", "--file", archive)).bad(cluster.controlplane.address)
    finally:
        await cluster.close()
    assert not archive.exists()
