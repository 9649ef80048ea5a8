"""A cluster as `stairwell pki init` makes it, real processes, TLS between all of them.

A replacement from end to end, roles and tokens of people, certificates renewed under a load, and no
plain text where others listen in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stairlib.model.errors import RefusedError, StairwellError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import TlsFiles, reach
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb
from stairwell.downstairs.v1 import repair_service_pb2_grpc as repair_grpc
from tests.integration.bundles import bundled_files, configurations, settings
from tests.integration.cluster import LOOPBACK, Answer, Cluster, Program, run
from tests.integration.volume import Volume
from tests.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]


# Of every program, besides its private key.
SECRETS = {"STAIRWELL_SECRET_KEY": "6b" * 32, "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=of-nobody"}


class SecureCluster(Cluster):
    """Its programs have their certificates from the environment, as in a unit file."""

    def __init__(self, folder: Path, pki: Path) -> None:
        super().__init__(
            folder, SECRETS, lambda name: self.files("operator" if name else "vmmd")
        )  # fmt: skip
        self.pki = pki
        self.tokens_port = free_ports(1)
        self.controlplane.command += [
            "--tokens", str(pki / "tokens"), "--tokens-listen", f"{LOOPBACK}:{self.tokens_port}",
        ]  # fmt: skip
        self.nbd_port = free_ports(1)
        self.vmmd.command += ["--nbd-listen", f"{LOOPBACK}:{self.nbd_port}"]
        for program in (self.vmmd, self.controlplane):
            self.secure(program, program.name)

    def files(self, name: str) -> TlsFiles:
        return TlsFiles(
            str(self.pki / f"{name}.pem"), str(self.pki / f"{name}.key"), str(self.pki / "ca.pem")
        )

    def secure(self, program: Program, name: str) -> Program:
        files = self.files(name)
        program.tls = files
        program._env = {
            **program._env,
            "STAIRWELL_DAEMON_TLS_CERT": files.cert,
            "STAIRWELL_DAEMON_TLS_KEY": files.key,
            "STAIRWELL_DAEMON_TLS_CA": files.root,
        }
        return program

    async def as_(self, who: str, *words: str) -> Answer:
        """`stairwell` by somebody with a certificate."""
        files = self.files(who)
        port = str(self.controlplane.port)
        flags = ["--tls-ca", files.root, "--tls-cert", files.cert, "--tls-key", files.key]
        return await run("stairwell", "-p", port, *flags, *words, env=self.env)

    async def cli(self, *words: Any, server: str = "") -> Answer:
        return await self.as_("operator", *words)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SecureCluster]:
    folder = tmp_path_factory.mktemp("mtls")
    pki = folder / "pki"
    made = await run("stairwell", "pki", "init", "--dir", pki)
    assert "operator" in made.good().out
    for name, role in (("otto", "operator"), ("eve", "viewer")):
        words = ("stairwell", "pki", "token", name, "--role", role, "--dir", pki)
        (await run(*words)).good()
    cluster = SecureCluster(folder / "cluster", pki)
    try:
        await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
        yield cluster
    finally:
        await cluster.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def volume(cluster: SecureCluster) -> AsyncIterator[Volume]:
    """Running, with three members and a spare."""
    programs = [cluster.secure(cluster.downstairs(), "downstairs") for _ in range(4)]
    own = cluster.files("vmmd")
    made = Volume(
        cluster, programs, cert_pem=own.cert, key_pem=own.key, root_cert_pem=own.root
    )  # fmt: skip
    await asyncio.gather(*(program.start() for program in programs))
    try:
        await made.create()
        await made.run()
        await made.fill()
        yield made
    finally:
        with contextlib.suppress(StairwellError, AssertionError):
            await made.delete()


async def serial(address: str, files: TlsFiles) -> str:
    """Of the certificate that is shown at an address."""
    host, _, port = address.rpartition(":")
    probe = files.client().probe
    _, writer = await asyncio.open_connection(host, int(port), ssl=probe, server_hostname="")
    found: str = writer.get_extra_info("peercert")["serialNumber"]
    writer.transport.abort()
    return found


async def test_a_replacement_from_end_to_end(cluster: SecureCluster, volume: Volume) -> None:
    async with volume.load() as load:
        answer = await volume.replace()
        await load.goes_on()
        replacement = await volume.done(answer.replacement_id)
    assert replacement.new_target == volume.spare.address
    await volume.settled()
    await volume.verify()
    await volume.read_back()
    trace = (await cluster.cli("--output", "json", "trace", replacement.id)).good().json
    assert {"controlplane", "vmmd", "downstairs"} <= set(trace["services"])


async def test_roles(cluster: SecureCluster, volume: Volume) -> None:
    (await cluster.as_("viewer", "disk", "status", volume.disk)).good()
    refused = await cluster.as_("viewer", "disk", "verify", volume.disk)
    refused.bad("VerifyDisk takes the role operator, and viewer has viewer", "ROLE_NEEDED")
    (await cluster.as_("operator", "disk", "verify", volume.disk)).good()
    (await cluster.as_("vmmd", "list")).bad("takes the role operator or viewer")


async def test_a_disk_over_the_network(
    cluster: SecureCluster, volume: Volume, tmp_path: Path
) -> None:
    """By libnbd and a certificate of `stairwell pki`; the rest is in tests/contract/tls."""
    if shutil.which("nbdinfo") is None:
        pytest.skip("nbdinfo is not installed")

    async def told(who: str) -> Answer:
        folder = tmp_path / who
        folder.mkdir()
        files = cluster.files(who)
        for name, path in (("ca-cert", files.root), ("client-cert", files.cert),
                           ("client-key", files.key)):  # fmt: skip
            (folder / f"{name}.pem").symlink_to(path)
        certificates = f"tls-certificates={folder}&tls-verify-peer=true"
        where = f"{uri}?{certificates}"
        # Without it libnbd keeps the server's words to itself.
        return await run("nbdinfo", "--json", where, env={**cluster.env, "LIBNBD_DEBUG": "1"})

    status = (await cluster.cli("disk", "status", volume.disk, "--output", "json")).good().json
    uri = status["volume"]["nbd_gateway_uri"]
    assert uri == f"nbds://{LOOPBACK}:{cluster.nbd_port}/{volume.disk}"
    found = (await told("operator")).good().json
    assert found["TLS"] is True
    assert found["exports"][0]["export-size"] > 0
    (await told("viewer")).bad("a disk over NBD takes the role operator", "opt_go request")


async def test_tokens(cluster: SecureCluster, volume: Volume) -> None:
    async def by(token: Path, *words: str) -> Answer:
        flags = ["--tls-ca", str(cluster.pki / "ca.pem"), "--token-file", str(token)]
        port = str(cluster.tokens_port)
        return await run("stairwell", "-p", port, *flags, *words, env=cluster.env)

    otto, eve = cluster.pki / "otto.token", cluster.pki / "eve.token"
    (await by(otto, "disk", "verify", volume.disk)).good()
    (await by(eve, "list")).good()
    (await by(eve, "disk", "verify", volume.disk)).bad("takes the role operator, and eve has")
    (await by(otto, "health")).good()
    altered = cluster.folder / "altered.token"
    altered.write_text(otto.read_text().strip()[:-2] + "xx")
    refused = (await by(altered, "list")).bad("is not known here", "stairwell pki token")
    assert altered.read_text() not in refused.err


async def test_who_shows_nothing_or_something_else_is_told_what_to_do(
    cluster: SecureCluster, tmp_path: Path
) -> None:
    port = str(cluster.controlplane.port)
    plain = await run("stairwell", "-p", port, "list", env=cluster.env)
    plain.bad("speaks TLS only", "--tls-cert")
    (await run("stairwell", "pki", "init", "--dir", tmp_path / "other")).good()
    other = TlsFiles(
        str(tmp_path / "other" / "operator.pem"), str(tmp_path / "other" / "operator.key"), ""
    )
    ours, theirs = str(cluster.pki / "ca.pem"), str(tmp_path / "other" / "ca.pem")
    for root, words in ((ours, "does not accept our certificate"), (theirs, "--tls-ca")):
        flags = ["--tls-ca", root, "--tls-cert", other.cert, "--tls-key", other.key]
        (await run("stairwell", "-p", port, *flags, "list", env=cluster.env)).bad(words)


async def test_certificates_are_renewed_under_a_running_cluster(
    cluster: SecureCluster, volume: Volume
) -> None:
    daemons = [cluster.controlplane, cluster.vmmd, *volume.downstairs]
    operator = cluster.files("operator")
    pids = [daemon.pid for daemon in daemons]
    before = [await serial(daemon.address, operator) for daemon in daemons]
    async with volume.load() as load:
        (await run("stairwell", "pki", "renew", "--dir", cluster.pki)).good()
        after = [await serial(daemon.address, operator) for daemon in daemons]
        assert all(old != new for old, new in zip(before, after, strict=True))
        await load.goes_on()
        # New connections, with new certificates on both sides.
        volume.downstairs[0].kill()
        await volume.slot_not_active(0)
        await volume.downstairs[0].start()
        await volume.settled()
        await load.goes_on()
    (await cluster.cli("disk", "verify", volume.disk)).good()
    assert [daemon.pid for daemon in daemons][:2] == pids[:2]
    assert all(daemon.is_running for daemon in daemons)


async def test_a_downstairs_takes_no_orders_from_people_and_no_plain_text(
    cluster: SecureCluster, volume: Volume
) -> None:
    address = volume.downstairs[0].address
    for who, reason in (("operator", "ROLE_NEEDED"), ("viewer", "ROLE_NEEDED")):
        peer = await reach(address, cluster.files(who))
        async with open_channel(address, tls=peer) as channel:
            stub = repair_grpc.RepairServiceStub(channel)
            with pytest.raises(RefusedError) as refused, translated(address):
                await stub.GetExtentContexts(repair_pb.GetExtentContextsRequest(), timeout=10)
        assert refused.value.reason == reason
        assert "takes the role daemon" in refused.value.message


async def test_requests_name_no_files(
    cluster: SecureCluster, volume: Volume, tmp_path: Path
) -> None:
    """The machine's host is reached by others, and its configuration names no directories."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    other = Volume(cluster, volume.downstairs)
    spec = other.spec()
    source = {"type": "file", "id": other.id, "block_size": 4096, "path": str(tmp_path / "disk")}
    spec["volume_construction_request"] = source
    file = tmp_path / "disk.json"
    file.write_text(json.dumps([spec]))
    refused = await cluster.cli("new", "filed", "--crucible-disks", str(file))
    refused.bad("must not be used", "file_directories", "FILE_OUTSIDE")


async def test_no_secret_is_in_a_log_or_an_answer(cluster: SecureCluster, volume: Volume) -> None:
    secrets = [path.read_text().splitlines()[1] for path in cluster.pki.glob("*.key")]
    secrets += [path.read_text().strip() for path in cluster.pki.glob("*.token")]
    assert len(secrets) == 8
    logs = list(cluster.folder.rglob("*.log"))
    assert len(logs) >= 6
    texts = [log.read_text(errors="replace") for log in logs]
    texts += [json.dumps((await cluster.cli("--output", "json", "list")).good().json)]
    assert not [secret[:6] for secret in secrets for text in texts if secret in text]


async def test_a_bundle_tells_how_all_were_started_and_no_secret(
    cluster: SecureCluster, volume: Volume, tmp_path: Path
) -> None:
    for who in ("operator", "viewer"):
        archive = tmp_path / f"{who}.tar.gz"
        (await cluster.as_(who, "bundle", "--file", str(archive))).good()
        files = await asyncio.to_thread(bundled_files, archive)
        assert "missing.txt" not in files, files["missing.txt"]
        daemons = configurations(files).values()
        found = {
            (daemon["service"], name): value
            for daemon in daemons
            for name, (value, _source, _origin) in settings(daemon).items()
        }
        # Paths are told, what is in the files is not.
        key = str(cluster.pki / "downstairs.key")
        assert found["downstairs", "tls-key"] == key
        assert found["controlplane", "tokens"] == str(cluster.pki / "tokens")
        assert found["vmmd", "OTEL_EXPORTER_OTLP_HEADERS"] == "***"
        assert found["controlplane", "STAIRWELL_SECRET_KEY"] == "***"
        # A spare is known from when it is first named.
        assert len(daemons) >= 2 + 3
        secrets = [*SECRETS.values(), "of-nobody"]
        secrets += [path.read_text().splitlines()[1] for path in cluster.pki.glob("*.key")]
        secrets += [path.read_text().strip() for path in cluster.pki.glob("*.token")]
        secrets += [line.split()[2] for line in (cluster.pki / "tokens").read_text().splitlines()
                    if not line.startswith("#")]  # fmt: skip
        assert not [one[:6] for one in secrets for text in files.values() if one.encode() in text]


@pytest.mark.parametrize("said", [False, True])
async def test_plain_text_is_for_this_host_unless_insecure_is_said(
    cluster: SecureCluster, tmp_path: Path, said: bool
) -> None:
    """Each daemon, asked to listen for others: refused in words, or started where it is said."""
    config = tmp_path / "server.toml"
    config.touch()
    region = tmp_path / "region"
    geometry = ["--block-size", "4096", "--extent-size", "16", "--extent-count", "2"]
    (await run("downstaird", "create", "-d", region, "-u", str(uuid.uuid4()), *geometry)).good()
    port = free_ports(6, step=2)
    commands = [
        ["vmmd", "run", str(config), f"0.0.0.0:{port}"],
        ["controlplane", "run", f"0.0.0.0:{port + 2}", "--data", str(tmp_path / "data")],
        ["downstaird", "run", "-d", str(region), "-a", "0.0.0.0", "-p", str(port + 4)],
        [
            "downstaird", "agent", "--root", str(tmp_path / "root"), "-a", "0.0.0.0",
            "--ports", f"{port + 8}-{port + 10}", "--listen", f"0.0.0.0:{port + 6}",
        ],
    ]  # fmt: skip
    for number, command in enumerate(commands):
        named = next(word for word in command if word.startswith("0.0.0.0:") or word == "0.0.0.0")
        name = f"open-{number}-{said}"
        ports = (port, port + 2, port + 4, port + 6)
        more = ["--insecure"] if said else []
        program = cluster.program(name, [*command, *more], ports[number])
        try:
            if said:
                await program.start()
                continue
            program.launch()
            assert await program.ended() == 1
            for words in (named, "in plain text", "--insecure", "stairwell pki init"):
                assert words in program.tail(), program.tail()
            assert "Traceback" not in program.tail()
        finally:
            cluster.remove([program])


async def test_the_client_sends_nothing_in_plain_text_to_another_host(
    cluster: SecureCluster,
) -> None:
    """Requests hold keys of volumes. A listener on a name of this host that is not loopback."""
    address = next(
        (each[4][0] for each in socket.getaddrinfo(socket.gethostname(), 0, socket.AF_INET)
         if not each[4][0].startswith("127.")), None,
    )  # fmt: skip
    host = address or "192.0.2.1"
    refused = await run("stairwell", "-s", host, "--timeout", "2", "list", env=cluster.env)
    refused.bad("in plain text", "--insecure", "--tls-cert")
    said = await run("stairwell", "--insecure", "-s", host, "--timeout", "1", "list")
    said.bad("cannot")
    assert "in plain text" not in said.err
