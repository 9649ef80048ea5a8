"""A disk whose request names three PEM files, on real processes: made, run, a member replaced
through the control plane under load, verified; spares registered; and what is wrong said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stairlib.model.errors import InvalidRequestError, StairwellError, StateError
from stairlib.rpc.tls import TlsFiles
from tests.certificates import SLOT_NAMES, Authority
from tests.integration.cluster import LOOPBACK, Cluster
from tests.integration.volume import Volume
from tests.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

CONTROLPLANE_FLAGS = (
    "--downstairs-cert-pem", "--downstairs-key-pem", "--downstairs-root-cert-pem",
)  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> TlsFiles:
    return authority.issue("machine")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster.started(tmp_path_factory.mktemp("tls") / "cluster") as started:
        yield started


def paths(files: TlsFiles) -> dict[str, str]:
    return {"cert_pem": files.cert, "key_pem": files.key, "root_cert_pem": files.root}


@asynccontextmanager
async def secure_volume(
    cluster: Cluster, authority: Authority, **options: Any
) -> AsyncIterator[Volume]:
    """A machine, not yet run, on three members that have the names of their slots, and a spare that
    has its host's."""
    names = [*((name,) for name in SLOT_NAMES), (LOOPBACK,)]
    servers = [authority.issue(f"server{n}", *each) for n, each in enumerate(names)]
    volume = Volume(cluster, [cluster.downstairs(tls=files) for files in servers], **options)
    try:
        await asyncio.gather(*(program.start() for program in volume.downstairs))
        await volume.create()
        yield volume
    finally:
        with contextlib.suppress(StairwellError, AssertionError):
            await volume.delete()
        cluster.remove(volume.downstairs)


async def test_a_disk_over_tls_from_its_making_to_a_replaced_member(
    cluster: Cluster, authority: Authority, client: TlsFiles
) -> None:
    async with secure_volume(cluster, authority, **paths(client)) as volume:
        await volume.run()
        await volume.fill()
        async with volume.load() as load:
            answer = await volume.replace()
            await load.goes_on()
            replacement = await volume.done(answer.replacement_id)
        assert replacement.new_target == volume.spare.address
        await volume.settled()
        await volume.verify()
        await volume.read_back()
        trace = (await cluster.cli("--output", "json", "trace", replacement.id)).good().json
        # Spans of the downstairs were collected over TLS too, and those of the copies among them.
        assert "downstairs" in trace["services"]
        copies = [span for span in trace["spans"] if span["name"] == "repair.copy_extent"]
        assert copies
        # The new member alone has everything.
        for program in volume.downstairs[:2]:
            program.kill()
        await volume.slot_not_active(0)
        await volume.slot_not_active(1)
        await volume.read_back()
    assert_unlogged(cluster, Path(client.key))


def assert_unlogged(cluster: Cluster, key: Path) -> None:
    """No log of the cluster holds the private key."""
    secret = key.read_text().splitlines()[1]
    logs = list(cluster.folder.rglob("*.log"))
    assert len(logs) >= 6
    for log in logs:
        assert secret not in log.read_text(errors="replace"), log


async def test_a_file_that_is_not_there_is_named(
    cluster: Cluster, authority: Authority, client: TlsFiles
) -> None:
    gone = {**paths(client), "key_pem": "/nowhere/key.pem"}
    volume = Volume(cluster, [cluster.downstairs() for _ in range(3)], **gone)
    with pytest.raises(StateError) as caught:
        await volume.create()
    assert caught.value.reason == "TLS_FILE"
    assert "sub_volumes[0]: opts.key_pem: /nowhere/key.pem cannot be read" in caught.value.message
    cluster.remove(volume.downstairs)
    # Given in part: refused before anything is made.
    volume = Volume(cluster, [cluster.downstairs() for _ in range(3)], cert_pem=client.cert)
    with pytest.raises(InvalidRequestError) as refused:
        await volume.create()
    assert {each.reason for each in refused.value.violations} == {"TLS_INCOMPLETE"}
    cluster.remove(volume.downstairs)


@pytest.mark.long
async def test_spares_are_registered_with_the_control_plane_s_own_files(
    cluster: Cluster, authority: Authority, client: TlsFiles
) -> None:
    spare = cluster.downstairs(tls=authority.issue("spare", LOOPBACK))
    await spare.start()
    refused = (await cluster.cli("fleet", "register", spare.address)).bad("speaks TLS only")
    assert CONTROLPLANE_FLAGS[0] in refused.err
    own = authority.issue("controlplane")
    flags = [
        word
        for pair in zip(CONTROLPLANE_FLAGS, (own.cert, own.key, own.root), strict=True)
        for word in pair
    ]
    plain = list(cluster.controlplane.command)
    await cluster.controlplane.end()
    cluster.controlplane.command[:] = [*plain, *flags]
    await cluster.controlplane.start()
    try:
        (await cluster.cli("fleet", "register", spare.address)).good()
        assert spare.address in (await cluster.cli("fleet", "list")).good().out
        # Machines go on with the files of the request, which the control plane need not have.
        async with secure_volume(cluster, authority, **paths(client)) as volume:
            await volume.run()
            answer = await volume.replace(volume.changed(target=spare.address))
            await volume.done(answer.replacement_id)
    finally:
        await cluster.controlplane.end()
        cluster.controlplane.command[:] = plain
        await cluster.controlplane.start()
        cluster.remove([spare])


@pytest.mark.long
async def test_dsc_gives_its_files_to_each_downstairs(
    cluster: Cluster, authority: Authority
) -> None:
    base, control = free_ports(3, step=10), free_ports(1)
    files = authority.issue("rack", LOOPBACK)
    command = [
        "dsc", "start", "--create", "--region-count", "3", "--port-base", str(base),
        "--region-dir", str(cluster.folder / "dsc"), "--output-dir", str(cluster.folder / "out"),
        "--control", f"{LOOPBACK}:{control}", "--cert-pem", files.cert, "--key-pem", files.key,
        "--root-cert-pem", files.root,
    ]  # fmt: skip
    dsc = cluster.program("dsc", command, control)
    await dsc.start()
    volume = Volume(cluster, [], **paths(files))
    targets = [f"{LOOPBACK}:{base + 10 * n}" for n in range(3)]
    vcr = volume.vcr(1, targets, blocks_per_extent=100, extent_count=15)
    volume.vcr = lambda *_args, **_shape: vcr  # type: ignore[method-assign]
    await volume.create(targets)
    await volume.run()
    await volume.settled()
    await volume.stop()
    cluster.remove([dsc])


async def test_a_lossy_disk_says_so_in_the_daemons_logs(
    cluster: Cluster, authority: Authority
) -> None:
    programs = [cluster.downstairs() for _ in range(3)]
    volume = Volume(cluster, programs, lossy=True, control=f"{LOOPBACK}:{free_ports(1)}")
    try:
        await asyncio.gather(*(program.start() for program in programs))
        await volume.create()
        await volume.run()
        await volume.fill(size=1 << 20)
        await volume.verify()
        for program in programs:
            lines = program.log.read_text().splitlines()
            connected = [line for line in lines if "session connected" in line]
            assert connected
            assert all('"lossy": true' in line or "lossy=True" in line for line in connected)
        await volume.stop()
        assert "control address not served" in cluster.vmmd.log.read_text()
    finally:
        with contextlib.suppress(StairwellError, AssertionError):
            await volume.delete()
        cluster.remove(programs)


async def test_a_daemon_does_not_start_with_files_that_will_not_do(
    cluster: Cluster, authority: Authority
) -> None:
    good = authority.issue("good", LOOPBACK)
    other = authority.issue("other", LOOPBACK)
    for files, words in (
        (TlsFiles(good.cert, other.key, good.root), ("--key-pem", "is not the key of")),
        (TlsFiles("/nowhere/c.pem", good.key, good.root), ("--cert-pem: /nowhere/c.pem",)),
    ):
        program = cluster.downstairs(tls=files)
        program.launch()
        assert await program.ended() == 1
        for word in words:
            assert word in program.tail()
        assert "Traceback" not in program.tail()
        # Nothing was made for it.
        assert not (cluster.folder / program.name).exists()
    program = cluster.downstairs()
    program.command += ["--cert-pem", good.cert]
    program.launch()
    assert await program.ended() == 1
    assert "--key-pem is missing" in program.tail()
