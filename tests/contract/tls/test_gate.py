"""Who gets in: certificates and tokens of a real authority, shown over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_reflection.v1alpha import reflection_pb2

from stairlib.model.errors import (
    InvalidRequestError,
    RefusedError,
    UnauthenticatedError,
    UnavailableError,
)
from stairlib.rpc import authority as authority_module
from stairlib.rpc import health_check
from stairlib.rpc.access import Role
from stairlib.rpc.authority import Authority, Wish
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.renewed_channel import RenewedChannel
from stairlib.rpc.server import RpcServer, Service, TokenPort
from stairlib.rpc.tls import PeerTls, TlsFiles
from stairlib.rpc.tokens import TokenBook, add_line, new_token
from stairlib.runtime.addresses import parse_address
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc

HOST = "127.0.0.1"
NAME = "stairwell.controlplane.v1.DiskService"
DAY = timedelta(days=1)


class Disks(disk_grpc.DiskServiceServicer):
    """Counts what got through."""

    def __init__(self):
        self.seen = []
        self.shown = None

    async def ListDisks(self, request, context):
        self.seen.append("ListDisks")
        self.shown = context.auth_context().get("x509_pem_cert")
        return disk_pb.ListDisksResponse()

    async def StopScrub(self, request, context):
        self.seen.append("StopScrub")
        return disk_pb.StopScrubResponse()

    async def WatchDisk(self, request, context):
        self.seen.append("WatchDisk")
        yield disk_pb.WatchDiskResponse()
        await asyncio.Event().wait()


@pytest.fixture
def pki(tmp_path):
    return Authority.found(tmp_path / "pki", 30)


def files(pki, name, role, hosts=(), days=30) -> TlsFiles:
    made = pki.issue(Wish(name, role, hosts), days, replace=True)
    return TlsFiles(str(made.certificate), str(made.key), str(pki.root))


@pytest.fixture
def disks():
    return Disks()


@pytest.fixture
async def served(pki, disks, tmp_path):
    """(mTLS address, token address, file of tokens)"""
    book = tmp_path / "tokens"
    book.touch(mode=0o600)
    own = files(pki, "controlplane", Role.DAEMON)
    server = RpcServer(
        f"{HOST}:0",
        [Service(NAME, lambda it: disk_grpc.add_DiskServiceServicer_to_server(disks, it))],
        Tracing("test", "here"),
        tls=own.server(),
        tokens=TokenPort(parse_address(f"{HOST}:0"), TokenBook(book)),
    )
    await server.start()
    yield server.address, server.tokens_address, book
    await server.stop(0)


@contextlib.asynccontextmanager
async def calling(address, credentials, token=None):
    """The stub of a client with these; the channel is closed at the end."""
    peer = PeerTls(credentials, None, HOST)
    async with open_channel(address, tls=peer) as channel:
        yield (
            disk_grpc.DiskServiceStub(channel),
            ([("authorization", token)] if token is not None else []),
        )


async def ask(address, credentials, method="ListDisks", token=None, seconds=5.0):
    requests = {"ListDisks": disk_pb.ListDisksRequest(), "StopScrub": disk_pb.StopScrubRequest()}
    async with calling(address, credentials, token) as (stub, metadata):
        with translated("the control plane"):
            return await getattr(stub, method)(
                requests[method], timeout=seconds, metadata=metadata, wait_for_ready=False
            )


async def test_roles_of_certificates(served, pki, disks):
    address, _, _ = served
    viewer = files(pki, "eve", Role.VIEWER).client().credentials
    operator = files(pki, "otto", Role.OPERATOR).client().credentials
    daemon = files(pki, "vmmd", Role.DAEMON).client().credentials
    await ask(address, viewer)
    await ask(address, operator)
    await ask(address, operator, "StopScrub")
    assert disks.seen == ["ListDisks", "ListDisks", "StopScrub"]
    with pytest.raises(RefusedError) as refused:
        await ask(address, viewer, "StopScrub")
    assert refused.value.reason == "ROLE_NEEDED"
    assert "StopScrub takes the role operator, and eve has viewer" in refused.value.message
    # Nothing calls upwards.
    with pytest.raises(
        RefusedError, match="takes the role operator or viewer, and vmmd has daemon"
    ):
        await ask(address, daemon)
    assert len(disks.seen) == 3


async def test_a_stream_is_refused_before_it_begins(served, pki, disks):
    address, _, _ = served
    daemon = files(pki, "vmmd", Role.DAEMON).client().credentials
    async with calling(address, daemon) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.WatchDisk(disk_pb.WatchDiskRequest(), timeout=5):
                pass
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert disks.seen == []


async def test_a_certificate_without_a_role_is_good_for_nothing(served, authority, tmp_path, pki):
    address, _, _ = served
    bare = authority.issue("bare", role=None)
    # Signed by the cluster's own authority, as somebody's other tool might have done.
    key = load_pem_private_key((pki.folder / "ca.key").read_bytes(), None)
    wanted = x509.load_pem_x509_certificate((tmp_path / "ours" / "bare.cert.pem").read_bytes())
    root = x509.load_pem_x509_certificate(pki.root.read_bytes())
    signed = (
        x509.CertificateBuilder()
        .subject_name(wanted.subject)
        .issuer_name(root.subject)
        .public_key(wanted.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + DAY)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "bare.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    client = TlsFiles(str(path), bare.key, str(pki.root)).client().credentials
    with pytest.raises(RefusedError) as refused:
        await ask(address, client)
    assert refused.value.reason == "NO_ROLE"
    assert "the certificate of bare names no role" in refused.value.message
    assert "stairwell pki issue" in refused.value.message


async def test_nobody_without_a_certificate_of_the_authority(served, pki, authority, disks):
    address, _, _ = served
    root = pki.root.read_bytes()
    foreign = authority.issue("operator", role="operator")
    for credentials in (
        grpc.ssl_channel_credentials(root),
        TlsFiles(foreign.cert, foreign.key, str(pki.root)).client().credentials,
    ):
        with pytest.raises(UnavailableError):
            await ask(address, credentials)
    # And a client does not speak to a server of another authority.
    operator = files(pki, "otto", Role.OPERATOR)
    wrong = TlsFiles(operator.cert, operator.key, foreign.root)
    with pytest.raises(UnavailableError):
        await ask(address, wrong.client().credentials)
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await disk_grpc.DiskServiceStub(channel).ListDisks(
                disk_pb.ListDisksRequest(), timeout=5
            )
    assert disks.seen == []


async def test_a_certificate_that_has_run_out_is_refused(served, pki, disks, monkeypatch):
    address, _, _ = served
    monkeypatch.setattr(authority_module, "_SLACK", 3 * DAY)
    late = pki.issue(Wish("late", Role.OPERATOR), -1)
    credentials = grpc.ssl_channel_credentials(
        pki.root.read_bytes(), late.key.read_bytes(), late.certificate.read_bytes()
    )
    with pytest.raises(UnavailableError):
        await ask(address, credentials)
    assert disks.seen == []


async def test_health_and_reflection(served, pki):
    address, tokens, _ = served
    viewer = files(pki, "eve", Role.VIEWER)
    assert await health_check.check(address, tls=viewer) == "SERVING"
    root = grpc.ssl_channel_credentials(pki.root.read_bytes())
    assert await health_check.check(tokens, tls=PeerTls(root, None, HOST)) == "SERVING"
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    async def reflect(where, credentials):
        async with open_channel(where, tls=PeerTls(credentials, None, HOST)) as channel:
            call = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([request]), timeout=5)
            return [answer async for answer in call]

    (answer,) = await reflect(address, viewer.client().credentials)
    assert NAME in {each.name for each in answer.list_services_response.service}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await reflect(tokens, root)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def add(book, name, role, days) -> str:
    token, line = new_token(name, role, days, datetime.now(UTC).date())
    add_line(book, line)
    return token


async def test_tokens(served, pki, disks):
    _, address, book = served
    root = grpc.ssl_channel_credentials(pki.root.read_bytes())
    # Added while the server runs.
    operator = add(book, "otto", Role.OPERATOR, 10)
    viewer = add(book, "eve", Role.VIEWER, None)
    await ask(address, root, "StopScrub", f"Bearer {operator}")
    await ask(address, root, token=f"bearer {viewer}")
    assert disks.seen == ["StopScrub", "ListDisks"]
    with pytest.raises(RefusedError, match="takes the role operator, and eve has viewer"):
        await ask(address, root, "StopScrub", f"Bearer {viewer}")
    late = add(book, "late", Role.OPERATOR, -1)
    altered = operator[:-1] + ("A" if operator[-1] != "A" else "B")
    for token, reason in (
        (None, "TOKEN_NEEDED"),
        ("", "TOKEN_NEEDED"),
        ("Bearer", "TOKEN_NEEDED"),
        (f"Basic {operator}", "TOKEN_NEEDED"),
        (operator, "TOKEN_NEEDED"),
        (f"Bearer {altered}", "TOKEN_UNKNOWN"),
        (f"Bearer {operator[:-1]}", "TOKEN_UNKNOWN"),
        (f"Bearer {late}", "TOKEN_EXPIRED"),
    ):
        with pytest.raises(UnauthenticatedError) as refused:
            await ask(address, root, token=token)
        assert refused.value.reason == reason
        for secret in (operator, altered, late):
            assert secret not in str(refused.value)
            assert secret not in refused.value.message
    # A digest is no token.
    digest = book.read_text().split("otto ")[1].split()[0]
    with pytest.raises(UnauthenticatedError):
        await ask(address, root, token=f"Bearer {digest}")
    # Taken out while the server runs.
    lines = book.read_text().splitlines(keepends=True)
    book.write_text("".join(line for line in lines if " otto " not in line))
    with pytest.raises(UnauthenticatedError):
        await ask(address, root, "StopScrub", f"Bearer {operator}")
    assert len(disks.seen) == 2


async def test_a_token_gets_nowhere_at_the_port_for_certificates(served, pki, disks):
    address, _, book = served
    token = add(book, "otto", Role.OPERATOR, 10)
    root = grpc.ssl_channel_credentials(pki.root.read_bytes())
    with pytest.raises(UnavailableError):
        await ask(address, root, token=f"Bearer {token}")
    # Nor does it add to what a certificate may do.
    viewer = files(pki, "eve", Role.VIEWER).client().credentials
    with pytest.raises(RefusedError):
        await ask(address, viewer, "StopScrub", f"Bearer {token}")
    assert disks.seen == []


async def test_a_broken_file_of_tokens_lets_in_whom_it_let_in_before(served, pki):
    _, address, book = served
    root = grpc.ssl_channel_credentials(pki.root.read_bytes())
    token = add(book, "eve", Role.VIEWER, 10)
    await ask(address, root, token=f"Bearer {token}")
    with book.open("a") as file:
        file.write(f"operator mallory {token} never\n")
    await ask(address, root, token=f"Bearer {token}")
    with pytest.raises(RefusedError):
        await ask(address, root, "StopScrub", f"Bearer {token}")


async def test_certificates_are_renewed_without_a_restart(served, pki, disks):
    address, _, _ = served
    operator = files(pki, "otto", Role.OPERATOR)

    async def serial():
        host, _, port = address.rpartition(":")
        context = operator.client().probe
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="")
        number = writer.get_extra_info("peercert")["serialNumber"]
        writer.transport.abort()
        return number

    async with calling(address, operator.client().credentials) as (stub, _):
        watch = stub.WatchDisk(disk_pb.WatchDiskRequest())
        await watch.read()
        before = await serial()
        pki.renew("controlplane", 30)
        after = await serial()
        assert before != after
        # Who was connected stays so.
        await stub.StopScrub(disk_pb.StopScrubRequest(), timeout=5)
        assert not watch.done()
        watch.cancel()
    # A new authority: its certificates are taken once the server has it too, beside the old one.
    other = Authority.found(pki.folder.parent / "other", 30)
    stranger = TlsFiles(*map(str, _pair(other, "zoe")), str(pki.root)).client().credentials
    with pytest.raises(UnavailableError):
        await ask(address, stranger)
    pki.root.write_bytes(pki.root.read_bytes() + other.root.read_bytes())
    await ask(address, stranger)
    await ask(address, operator.client().credentials)
    # And the old one's are taken no more once it is gone: no authority is only ever added.
    pki.root.write_bytes(other.root.read_bytes())
    old_root = TlsFiles(operator.cert, operator.key, str(pki.root))
    with pytest.raises(UnavailableError):
        await ask(address, old_root.client().credentials)


async def test_a_long_lived_channel_shows_the_renewed_certificate(served, pki, disks):
    """As of the control plane to vmmd: calls begun before go on, those after show the new one."""
    address, _, _ = served
    channel = RenewedChannel(address, files(pki, "otto", Role.OPERATOR))
    stub = disk_grpc.DiskServiceStub(channel)
    try:
        watch = stub.WatchDisk(disk_pb.WatchDiskRequest())
        await watch.read()
        shown = []
        for _ in range(2):
            await stub.ListDisks(disk_pb.ListDisksRequest(), timeout=5)
            shown.append([pem.strip() for pem in disks.shown])
            assert shown[-1] == [(pki.folder / "otto.pem").read_bytes().strip()]
            pki.renew("otto", 30)
        assert shown[0] != shown[1]
        assert not watch.done()
        # Files that will not do: the channel of before stays.
        (pki.folder / "otto.key").write_text("no key")
        before = channel.current()
        await stub.ListDisks(disk_pb.ListDisksRequest(), timeout=5)
        assert channel.current() is before
    finally:
        await channel.close()
    async with asyncio.timeout(10):
        with contextlib.suppress(asyncio.CancelledError):
            assert await watch.code() is grpc.StatusCode.CANCELLED


def _pair(pki, name):
    made = pki.issue(Wish(name, Role.OPERATOR), 30)
    return made.certificate, made.key


def test_plain_text_on_this_host_alone_unless_it_is_said():
    for address in ("127.0.0.1:0", "[::1]:0", "localhost:0", "unix:/tmp/x"):
        RpcServer(address, [], Tracing("test", "here"))
    for address in ("0.0.0.0:0", "[::]:0", "10.0.0.1:0", "host.example:0"):
        with pytest.raises(InvalidRequestError) as refused:
            RpcServer(address, [], Tracing("test", "here"))
        assert refused.value.reason == "PLAIN_TEXT"
        for words in (address, "--insecure", "--tls-cert", "stairwell pki init"):
            assert words in refused.value.message
        RpcServer(address, [], Tracing("test", "here"), insecure=True)
