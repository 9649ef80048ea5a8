"""Profile "obs" with the one of its services of which there is an image everywhere: Prometheus.

The tests share one cluster, in this order.
"""

import json
import time
import urllib.parse
import urllib.request

import pytest

from tests.compose.watched import DISKS
from tests.tidy.test_watching import rules

pytestmark = pytest.mark.timeout(300)

COMPOSE_PROFILES = ("obs",)
# Each is read every ten seconds.
SEEN_SECONDS = 60


def ask(cluster, path, **query):
    """The data of an answer of Prometheus, asked at the port of this machine."""
    where = f"http://127.0.0.1:{cluster.port_of('prometheus', 9090)}/api/v1/{path}"
    with urllib.request.urlopen(f"{where}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
        return json.load(answer)["data"]


def seen(look, wanted):
    """Waits until it is what is to be seen."""
    deadline = time.monotonic() + SEEN_SECONDS
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(1)


def test_every_program_is_read(cluster):
    def targets():
        active = ask(cluster, "targets", state="active")["activeTargets"]
        return {each["scrapeUrl"]: each["health"] for each in active}

    programs = [name for name in cluster.services if name != "prometheus"]
    seen(targets, {f"http://{name}:9464/metrics": "up" for name in programs})


def test_a_query_is_answered(cluster):
    cluster.stairwell("new", "crub", "--crucible-disks", DISKS)
    assert "running" in cluster.stairwell("state", "run", "--wait").stdout

    def whole():
        query = 'stairwell_volume_slots{disk="block2",state="active"}'
        return [each["value"][1] for each in ask(cluster, "query", query=query)["result"]]

    seen(whole, ["3"])


def test_the_rules_are_judged(cluster):
    groups = ask(cluster, "rules")["groups"]
    judged = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert set(judged) == {rule["alert"] for rule in rules()}
    assert "err" not in judged.values()


def test_it_writes_its_series_and_nothing_else(cluster):
    assert cluster.execute("prometheus", "id", "-u") == "65534"
    assert cluster.inspect("prometheus")["HostConfig"]["ReadonlyRootfs"]
    assert "wal" in cluster.execute("prometheus", "ls", "/prometheus").split()
