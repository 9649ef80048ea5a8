"""The cluster with certificates: mutual TLS between all containers and with who asks from outside.

The tests share one cluster, in this order.
"""

from __future__ import annotations

import asyncio
import json
import shlex

import pytest
import pytest_asyncio

from stairlib.rpc.tls import TlsFiles
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from tests.compose.watched import ROOT, ComposeVolume, Daemon
from tests.integration.cluster import MIB, Calls

pytestmark = pytest.mark.timeout(300)

COMPOSE_FILES = ("docker-compose.tls.yml",)
DISKS = "examples/compose/tls/crucible-disks.json"
REPLACEMENT = "examples/compose/tls/replace.json"
FILL_BYTES = 64 * MIB
DAEMONS = ("controlplane", "vmmd", "ds1", "ds2", "ds3", "ds4")


def files(folder, name):
    return TlsFiles(
        str(folder / f"{name}.pem"), str(folder / f"{name}.key"), str(folder / "ca.pem")
    )


@pytest.fixture(scope="module")
def people(cluster, tmp_path_factory):
    """A folder with the certificates of people, taken out as docs/compose.md says, and of vmmd,
    which tests ask as one of its own would."""
    folder = tmp_path_factory.mktemp("pki")
    cluster.pipe(
        "run", "--rm", "-T", "pki", "tar", "c", "-C", "/pki", "ca.pem",
        *(f"{who}.{ending}" for who in ("operator", "viewer", "vmmd") for ending in ("pem", "key")),
        into=f"tar x -C {shlex.quote(str(folder))}",
    )  # fmt: skip
    return folder


def client(people, who):
    """What `stairwell` has of somebody in its environment."""
    own = files(people, who)
    return {
        "STAIRWELL_TLS_CA": own.root, "STAIRWELL_TLS_CERT": own.cert, "STAIRWELL_TLS_KEY": own.key,
    }  # fmt: skip


def test_nothing_is_said_in_plain_text(cluster):
    for service in cluster.services:
        words = cluster.inspect(service)["Config"]["Cmd"]
        assert "--insecure" not in " ".join(words)
    refused = cluster.stairwell("list", check=False)
    assert refused.returncode
    assert "TLS_NEEDED" in refused.stderr


def test_each_program_has_its_own_key_alone(cluster):
    """And nobody the authority's."""
    shown = set()
    for service in DAEMONS:
        found = cluster.execute(service, "find", "/etc/stairwell/tls", "-type", "f").split()
        names = {"ca.pem", "cert.pem", "key.pem"}
        assert set(found) == {f"/etc/stairwell/tls/{name}" for name in names}
        mode = cluster.execute(service, "stat", "-c", "%a %u", "/etc/stairwell/tls/key.pem")
        assert mode == "400 10001"
        shown.add(cluster.execute(service, "sha256sum", "/etc/stairwell/tls/key.pem"))
    assert len(shown) == len(DAEMONS)


def test_an_operator_makes_the_machine_and_a_viewer_looks(cluster, people):
    operator, viewer = client(people, "operator"), client(people, "viewer")
    refused = cluster.stairwell("new", "crub", "--crucible-disks", DISKS, check=False, env=viewer)
    assert "ROLE_NEEDED" in refused.stderr
    cluster.stairwell("new", "crub", "--crucible-disks", DISKS, env=operator)
    assert "running" in cluster.stairwell("state", "run", "--wait", env=operator).stdout
    assert "running" in cluster.stairwell("get", "crub", env=viewer).stdout


@pytest_asyncio.fixture
async def volume(cluster, people):
    """The walk-through's disk."""
    calls = Calls(
        Daemon(cluster, "controlplane", 55400), Daemon(cluster, "vmmd", 55401),
        lambda name: files(people, "operator" if name else "vmmd"),
    )  # fmt: skip
    made = ComposeVolume(cluster, calls)
    try:
        await made.find()
        yield made
    finally:
        await calls.close()


async def test_a_member_is_replaced_under_a_load(volume):
    """Sessions, blocks, and the copies from one downstairs to another."""
    await volume.fill(FILL_BYTES)
    request = json.loads((ROOT / REPLACEMENT).read_text())["vcr"]
    async with volume.watched() as watch, volume.load(directly=True) as load:
        started = await volume.replace(request)
        assert started.result == disk_pb.REPLACE_RESULT_STARTED
        await load.goes_on()
        await volume.done(started.replacement_id)
        await watch.all_active()
        watch.assert_undisturbed(0, 1)
    assert (await volume.slot(2)).address == "ds4:8840"
    await volume.verify()
    await volume.read_back()


async def test_certificates_are_renewed_while_all_runs(volume):
    """Nothing is restarted: the next handshake shows the new one."""
    cluster = volume.containers
    before = cluster.execute("ds1", "cat", "/etc/stairwell/tls/cert.pem")
    async with volume.watched() as watch, volume.load(directly=True):
        renew = ("run", "--rm", "-T", "pki", "stairwell", "pki", "renew", "--dir", "/pki", "ds1")
        await asyncio.to_thread(cluster.compose, *renew)
        await asyncio.to_thread(cluster.compose, "run", "--rm", "-T", "pki")
        assert cluster.execute("ds1", "cat", "/etc/stairwell/tls/cert.pem") != before
        # A health check is a handshake.
        healthy = ("python3", "-m", "stairlib.rpc.health_check", "127.0.0.1:8810")
        assert cluster.execute("ds1", *healthy) == "SERVING"
        watch.assert_undisturbed(0, 1, 2)
    assert "certificates renewed" in cluster.compose("logs", "--no-color", "ds1").stdout
