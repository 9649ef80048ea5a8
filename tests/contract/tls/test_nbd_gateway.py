"""The NBD gateway in front of real NBD servers: who gets in, what is said to those who do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import struct

import pytest

from stairlib.model.errors import NotFoundError
from stairlib.runtime.addresses import parse_address
from tests.unit.vmmd.block.nbd_client import NbdClient
from vmmd.block import nbd_wire as wire
from vmmd.block.memory import MemoryBackend
from vmmd.block.nbd import NbdExport
from vmmd.block.nbd_wire import Option, OptionReply
from vmmd.nbd_gateway import gateway as gateway_module
from vmmd.nbd_gateway.gateway import NbdGateway

HOST = "127.0.0.1"
MIB = 1 << 20
SECONDS = 20.0


class Sockets(dict):
    """Names and paths: what machines are to the gateway."""

    def names(self):
        return list(self)

    async def socket_of(self, name):
        if name not in self:
            raise NotFoundError("disk", name)
        return self[name]


@pytest.fixture
async def exports(tmp_path):
    """Two disks, each behind its own NBD server."""
    made = {}
    for name in ("block2", "data"):
        made[name] = NbdExport(MemoryBackend(4096, 4096), name, socket=tmp_path / f"{name}.sock")
        await made[name].start()
    yield made
    for export in made.values():
        await export.stop()


@pytest.fixture
def disks(exports, tmp_path):
    return Sockets({name: str(tmp_path / f"{name}.sock") for name in exports})


@pytest.fixture
async def gateway(authority, disks):
    made = NbdGateway(
        parse_address(f"{HOST}:0"), disks, authority.issue("host", HOST, "localhost").server()
    )
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def plain(disks):
    made = NbdGateway(parse_address(f"{HOST}:0"), disks, None)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def operator(authority):
    return authority.issue("otto", role="operator")


OPENED = []


@pytest.fixture(autouse=True)
async def _closed():
    """No connection of a client outlives its test, nor is let go before: a stream that is
    collected closes what TLS goes over."""
    yield
    while OPENED:
        writer = OPENED.pop()
        writer.transport.abort()
    await asyncio.sleep(0)


async def dial(gateway):
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(HOST, gateway.address.port)
    OPENED.append(writer)
    return NbdClient(reader, writer)


def context_of(files):
    """A client's."""
    context = ssl.create_default_context(cafile=files.root)
    context.load_cert_chain(files.cert, files.key)
    return context


async def connect(gateway):
    """A client that has said nothing but its flags."""
    client = await dial(gateway)
    assert (await client.exactly(18))[:8] == b"NBDMAGIC"
    client.writer.write(wire.CLIENT_FLAGS.pack(3))
    return client


async def secure(client, context):
    """The same over TLS: on a protocol of its own, since a stream of Python 3.11 cannot change."""
    assert await client.option(Option.STARTTLS) == [(OptionReply.ACK, b"")]
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    async with asyncio.timeout(SECONDS):
        transport = await loop.start_tls(
            client.writer.transport, protocol, context, server_hostname="localhost"
        )
    protocol.connection_made(transport)
    OPENED.append(asyncio.StreamWriter(transport, protocol, reader, loop))
    return NbdClient(reader, OPENED[-1])


async def names_seen(gateway, context):
    client = await secure(await connect(gateway), context)
    return await client.option(Option.LIST)


async def entered(gateway, files, name=b"block2"):
    return await (await secure(await connect(gateway), context_of(files))).go(name)


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - looks at the server from outside
            await asyncio.sleep(0.001)


async def is_cut_off(client):
    """Whether the server ends the connection, whatever else it says before; TimeoutError when not,
    which is an OSError and must not be taken for an end."""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await client.reader.read(4096):
                pass
    return True


async def test_two_clients_write_and_read_by_name(gateway, operator):
    one = await entered(gateway, operator)
    two = await entered(gateway, operator)
    other = await entered(gateway, operator, b"data")
    data = os.urandom(3 * MIB)
    assert await one.write(4096, data) == 0
    assert await one.ask(wire.Command.FLUSH) == 0
    assert await two.read(4096, len(data)) == (0, data)
    assert await other.read(4096, 8192) == (0, bytes(8192))
    for client in (one, two, other):
        await client.close()


async def test_names_are_listed_and_unknown_ones_refused(gateway, operator):
    client = await secure(await connect(gateway), context_of(operator))
    *named, last = await client.option(Option.LIST)
    assert last == (OptionReply.ACK, b"")
    assert [body[4:] for _kind, body in named] == [b"block2", b"data"]
    request = struct.pack(">I", 4) + b"gone" + struct.pack(">H", 0)
    [(kind, text)] = await client.option(Option.GO, request)
    assert kind == OptionReply.ERR_UNKNOWN
    assert b"gone" in text
    # It goes on after that.
    await client.go(b"data")
    assert (await client.read(0, 4096))[0] == 0
    await client.close()


async def test_holes_are_told_to_who_chose_them_under_that_name(gateway, operator):
    for chosen, told in ((b"block2", True), (b"data", False)):
        client = await secure(await connect(gateway), context_of(operator))
        await client.option(Option.STRUCTURED_REPLY)
        query = struct.pack(">I", len(chosen)) + chosen + struct.pack(">I", 1)
        query += struct.pack(">I", len(wire.ALLOCATION_CONTEXT)) + wire.ALLOCATION_CONTEXT
        replies = await client.option(Option.SET_META_CONTEXT, query)
        assert [kind for kind, _ in replies] == [OptionReply.META_CONTEXT, OptionReply.ACK]
        # What is asked in between is of another connection, and changes nothing.
        await client.option(Option.INFO, struct.pack(">I", 4) + b"data" + struct.pack(">H", 0))
        await client.go(structured=True)
        found = await client.statuses(0, 8192)
        assert isinstance(found, list) if told else found == wire.Error.EINVAL
        await client.close()


async def test_the_old_way_in(gateway, operator):
    client = await secure(await connect(gateway), context_of(operator))
    client.writer.write(wire.OPTION.pack(wire.OPTION_MAGIC, Option.EXPORT_NAME, 4) + b"data")
    size, flags = wire.EXPORT.unpack(await client.exactly(wire.EXPORT.size))
    assert size == 4096 * 4096
    assert flags & wire.ExportFlag.HAS_FLAGS
    assert await client.write(0, b"\x05" * 4096) == 0
    await client.close()


@pytest.mark.parametrize(
    "option", [Option.LIST, Option.INFO, Option.GO, Option.STRUCTURED_REPLY, 99]
)
async def test_plain_text_gets_nothing_but_the_way_to_tls(gateway, operator, option):
    client = await connect(gateway)
    [(kind, _text)] = await client.option(option, struct.pack(">I6sH", 6, b"block2", 0))
    assert kind == OptionReply.ERR_TLS_REQD
    secured = await secure(client, context_of(operator))
    await secured.go()
    await secured.close()


async def test_plain_text_by_the_old_way_in_is_cut_off(gateway):
    client = await connect(gateway)
    client.writer.write(wire.OPTION.pack(wire.OPTION_MAGIC, Option.EXPORT_NAME, 6) + b"block2")
    assert await client.reader.read(1) == b""


async def test_what_is_sent_along_with_starttls_ends_it(gateway):
    client = await connect(gateway)
    both = wire.OPTION.pack(wire.OPTION_MAGIC, Option.STARTTLS, 0)
    both += wire.OPTION.pack(wire.OPTION_MAGIC, Option.LIST, 0)
    client.writer.write(both)
    assert await client.reader.read(1) == b""


async def test_a_second_starttls_is_invalid(gateway, operator):
    client = await secure(await connect(gateway), context_of(operator))
    [(kind, _text)] = await client.option(Option.STARTTLS)
    assert kind == OptionReply.ERR_INVALID
    await client.close()


async def test_no_certificate_gets_nowhere(gateway, operator):
    context = ssl.create_default_context(cafile=operator.root)
    with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
        await names_seen(gateway, context)


async def test_a_certificate_of_another_authority_gets_nowhere(gateway, operator, stranger):
    other = stranger.issue("otto", role="operator")
    context = ssl.create_default_context(cafile=operator.root)
    context.load_cert_chain(other.cert, other.key)
    with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
        await names_seen(gateway, context)


async def test_a_client_that_trusts_another_authority_goes(gateway, stranger):
    with pytest.raises(ssl.SSLCertVerificationError):
        await secure(await connect(gateway), context_of(stranger.issue("otto", role="operator")))


@pytest.mark.parametrize(
    ("role", "words"), [("viewer", b"operator"), ("daemon", b"operator"), (None, b"no role")]
)
async def test_other_roles_are_told_why_and_learn_no_names(gateway, authority, role, words):
    client = await secure(await connect(gateway), context_of(authority.issue("eve", role=role)))
    for option in (Option.LIST, Option.GO, Option.INFO):
        data = b"" if option == Option.LIST else struct.pack(">I6sH", 6, b"block2", 0)
        [(kind, text)] = await client.option(option, data)
        assert kind == OptionReply.ERR_POLICY
        assert words in text
    assert await client.option(Option.ABORT) == [(OptionReply.ACK, b"")]
    assert await is_cut_off(client)


async def test_plain_text_without_certificates(plain):
    client = await connect(plain)
    [(kind, _text)] = await client.option(Option.STARTTLS)
    assert kind == OptionReply.ERR_POLICY
    await client.go()
    assert await client.write(0, b"\x07" * 4096) == 0
    assert await client.read(0, 4096) == (0, b"\x07" * 4096)
    await client.close()


@pytest.mark.parametrize("said", [0, 1, 2])
async def test_who_stops_half_way_is_cut_off(gateway, monkeypatch, said):
    """After nothing, after the flags, and within the handshake of TLS."""
    monkeypatch.setattr(gateway_module, "HANDSHAKE_SECONDS", 0.3)
    client = await dial(gateway)
    if said:
        client.writer.write(wire.CLIENT_FLAGS.pack(3))
    if said == 2:
        client.writer.write(wire.OPTION.pack(wire.OPTION_MAGIC, Option.STARTTLS, 0))
        await client.exactly(18 + wire.OPTION_REPLY.size)
        # The beginning of a record of TLS.
        client.writer.write(b"\x16\x03\x01\x02\x00")
    assert await is_cut_off(client)
    await until(lambda: not gateway.client_count)


async def test_too_many_half_open_ones_are_refused_and_make_room_again(
    gateway, operator, monkeypatch
):
    monkeypatch.setattr(gateway_module, "HANDSHAKES_MAX", 2)
    waiting = [await connect(gateway) for _ in range(2)]
    assert await is_cut_off(await dial(gateway))
    for client in waiting:
        await client.option(Option.ABORT)
        assert await is_cut_off(client)
    await until(lambda: not gateway.client_count)
    client = await entered(gateway, operator)
    assert (await client.read(0, 4096))[0] == 0
    await client.close()


async def test_a_disk_that_ends_takes_its_clients_along_and_no_others(gateway, operator, exports):
    one = await entered(gateway, operator)
    other = await entered(gateway, operator, b"data")
    await exports["block2"].stop()
    assert await is_cut_off(one)
    assert (await other.read(0, 4096))[0] == 0
    await until(lambda: gateway.client_count == 1)
    late = await secure(await connect(gateway), context_of(operator))
    request = struct.pack(">I", 6) + b"block2" + struct.pack(">H", 0)
    [(kind, text)] = await late.option(Option.GO, request)
    assert (kind, b"not served now" in text) == (OptionReply.ERR_UNKNOWN, True)


async def test_the_end_of_the_gateway_is_the_end_of_its_clients(gateway, operator):
    one = await entered(gateway, operator)
    await gateway.stop()
    assert await is_cut_off(one)
    assert gateway.client_count == 0


# ---- real clients


@pytest.fixture
def folder(operator, tmp_path):
    """As libnbd and QEMU want their certificates."""
    made = tmp_path / "operator"
    made.mkdir()
    for name, path in (("ca-cert", operator.root), ("client-cert", operator.cert),
                       ("client-key", operator.key)):  # fmt: skip
        shutil.copy(path, made / f"{name}.pem")
    return made


async def tool(*words, fails=False):
    """What a program printed; skips the test where it is not there."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode != 0) == fails, out.decode()
    return out.decode()


async def test_libnbd(gateway, folder, tmp_path):
    where = f"nbds://localhost:{gateway.address.port}"
    certificates = f"tls-certificates={folder}&tls-verify-peer=true"
    uri = f"{where}/block2?{certificates}"
    told = json.loads(await tool("nbdinfo", "--json", uri))
    assert told["TLS"] is True
    assert told["exports"][0]["export-size"] == 4096 * 4096
    listed = json.loads(await tool("nbdinfo", "--list", "--json", f"{where}/?{certificates}"))
    assert [each["export-name"] for each in listed["exports"]] == ["block2", "data"]
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(4096 * 4096))
    await tool("nbdcopy", source, uri)
    await tool("nbdcopy", uri, back)
    assert back.read_bytes() == source.read_bytes()


async def test_libnbd_in_plain_text_is_refused(gateway):
    out = await tool("nbdinfo", f"nbd://localhost:{gateway.address.port}/block2", fails=True)
    assert "TLS" in out


async def test_qemu(gateway, folder):
    creds = f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}"
    disk = f"driver=nbd,host=localhost,port={gateway.address.port},export=block2,tls-creds=tls0"
    out = await tool(
        "qemu-io", "--object", creds, "--image-opts", disk,
        "-c", "write -P 7 4096 1M", "-c", "flush", "-c", "read -P 7 4096 1M",
    )  # fmt: skip
    assert "verification failed" not in out
    told = await tool(
        "qemu-img", "info", "--output", "json", "--object", creds, "--image-opts", disk
    )
    assert json.loads(told)["virtual-size"] == 4096 * 4096
