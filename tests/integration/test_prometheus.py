"""A real Prometheus reads a real cluster with the rules and the dashboard of deploy/."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.cluster import LOOPBACK, until
from tests.integration.volume import fresh_volume
from tests.integration.watched_cluster import WatchedCluster
from tests.ports import free_ports
from tests.tidy.test_watching import DASHBOARD, DEPLOY, RULES, rules

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.processes,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is absent (apt install prometheus)"
    ),
]


class Prometheus:
    """A server on a free port, which reads what a cluster serves each second."""

    def __init__(self, folder: Path, targets: dict[str, list[str]]) -> None:
        self.url = f"http://{LOOPBACK}:{free_ports(1)}"
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] |= {
            "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"
        }  # fmt: skip
        config["rule_files"] = [str(RULES)]
        # The jobs are the file's own; a target of a job that it has not would be missing below.
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": targets[job["job_name"]]}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    async def get(self, path: str, **query: str) -> Any:
        """The data of an answer of its API; AssertionError with its words when it refuses."""

        def read() -> Any:
            url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{query}: {error.read().decode()}") from error

        return await asyncio.to_thread(read)

    async def query(self, expression: str) -> list[Any]:
        """The samples of an expression now."""
        found: list[Any] = (await self.get("query", query=expression))["result"]
        return found

    async def ready(self) -> None:
        async def look() -> bool:
            assert self._process.poll() is None, self._log.name
            try:
                return bool(await self.get("status/runtimeinfo"))
            except (urllib.error.URLError, AssertionError):
                return False

        await until(look, bool)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@asynccontextmanager
async def watching(folder: Path, targets: dict[str, list[str]]) -> AsyncIterator[Prometheus]:
    await asyncio.to_thread(folder.mkdir)
    server = Prometheus(folder, targets)
    try:
        await server.ready()
        yield server
    finally:
        server.end()


def filled_in(expression: str) -> str:
    """A query of the dashboard as Grafana sends it."""
    return (
        expression.replace("$machine", ".*").replace("$disk", ".*")
        .replace("$__rate_interval", "10s")
    )  # fmt: skip


def panels() -> dict[str, list[str]]:
    """The queries of each panel by the row that it is in and its title."""
    found, row = {}, ""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            queries = [filled_in(target["expr"]) for target in panel["targets"]]
            found[f"{row}: {panel['title']}"] = queries
    return found


# Of these nothing is shown while all is well.
QUIET = {
    "Replicas: Slots that are not active", "Replacements: By state",
    "Replacements: What they wait for", "Downstairs: Extents", "Replacements: A step takes",
}  # fmt: skip


async def test_the_dashboard_shows_a_cluster_at_work_and_rules_notice_what_is_lost(
    tmp_path: Path,
) -> None:
    cluster = WatchedCluster(tmp_path / "cluster")
    try:
        await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
        async with (
            fresh_volume(cluster) as volume,
            volume.load(),
            watching(tmp_path / "prometheus", cluster.targets) as server,
        ):
            await until(
                lambda: server.query('sum(up{job=~"stairwell-.*"})'),
                lambda found: bool(found) and float(found[0]["value"][1]) == 6,
            )
            for title, queries in panels().items():
                for query in queries:
                    if title in QUIET:
                        await server.query(query)
                    else:
                        await shown(server, title, query)
            for rule in rules():
                assert await server.query(rule["expr"]) == [], rule["alert"]
            volume.downstairs[1].kill()
            noticed = await until(lambda: alerts(server), lambda found: "VolumeNotWhole" in found)
            assert noticed["VolumeNotWhole"]["disk"] == volume.disk
            await until(lambda: alerts(server), lambda found: "DaemonAway" in found)
            assert "GuestErrors" not in await alerts(server)
            await volume.downstairs[1].start()
            await until(lambda: alerts(server), lambda found: not found)
    finally:
        await cluster.close()


async def shown(server: Prometheus, title: str, query: str) -> None:
    """Waits until a panel has something to show; AssertionError names it."""
    try:
        await until(lambda: server.query(query), bool, 20.0)
    except AssertionError as error:
        raise AssertionError(f"{title}: {query}: {error}") from error


async def alerts(server: Prometheus) -> dict[str, dict[str, str]]:
    """The labels of each alert, firing or about to, by its name."""
    found = (await server.get("alerts"))["alerts"]
    return {each["labels"]["alertname"]: each["labels"] for each in found}
