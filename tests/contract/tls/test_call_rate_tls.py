"""Who is one caller where callers say who they are: certificates, tokens, and those who have
neither."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
import pytest

from stairlib.model.call_rate import CallRate
from stairlib.model.errors import CallRateError, RefusedError, UnauthenticatedError
from stairlib.rpc.access import Role, Shown
from stairlib.rpc.authority import Authority
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.server import RpcServer, Service, TokenPort
from stairlib.rpc.tokens import TokenBook, add_line, new_token
from stairlib.runtime.addresses import parse_address
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from tests.contract.tls.test_gate import HOST, NAME, Disks, ask, files

BURST = 3


class House:
    """A server with a rate and a token port; time stands still unless it is moved."""

    def __init__(self, folder, *, spares_daemons):
        self.pki = Authority.found(folder / "pki", 30)
        self.book = folder / "tokens"
        self.book.touch(mode=0o600)
        self.disks, self.now = Disks(), 0.0
        self.guard = CallGuard(
            CallRate(1, BURST), spares_daemons=spares_daemons, clock=lambda: self.now
        )
        disks = self.disks
        self.server = RpcServer(
            f"{HOST}:0",
            [Service(NAME, lambda it: disk_grpc.add_DiskServiceServicer_to_server(disks, it))],
            Tracing("test", "here"),
            tls=files(self.pki, "controlplane", Role.DAEMON).server(),
            tokens=TokenPort(parse_address(f"{HOST}:0"), TokenBook(self.book)),
            guard=self.guard,
        )

    def token(self, name):
        secret, line = new_token(name, Role.VIEWER, None, datetime.now(UTC).date())
        add_line(self.book, line)
        return f"Bearer {secret}"

    async def by_certificate(self, name, role):
        await ask(self.server.address, files(self.pki, name, role).client().credentials)

    async def by_token(self, token):
        root = grpc.ssl_channel_credentials(self.pki.root.read_bytes())
        await ask(self.server.tokens_address, root, token=token)


@pytest.fixture
async def house(tmp_path):
    made = House(tmp_path, spares_daemons=False)
    await made.server.start()
    yield made
    await made.server.stop(0)


async def test_each_name_has_a_rate_of_its_own(house):
    token = house.token("eve")
    for _ in range(BURST):
        await house.by_certificate("eve", Role.VIEWER)
    with pytest.raises(CallRateError):
        await house.by_certificate("eve", Role.VIEWER)
    await house.by_certificate("otto", Role.OPERATOR)
    # A token's name may be a certificate's by chance.
    for _ in range(BURST):
        await house.by_token(token)
    with pytest.raises(CallRateError):
        await house.by_token(token)
    assert house.guard.refused == {Shown.CERTIFICATE: 1, Shown.TOKEN: 1}
    house.now += 1
    await house.by_certificate("eve", Role.VIEWER)


async def test_who_guesses_tokens_is_counted_and_locks_out_nobody_else(house):
    token = house.token("eve")
    for _ in range(BURST):
        with pytest.raises(UnauthenticatedError):
            await house.by_token("Bearer stw_wrong")
    with pytest.raises(CallRateError):
        await house.by_token("Bearer stw_wrong")
    await house.by_token(token)
    assert house.disks.seen == ["ListDisks"]


async def test_who_may_not_call_at_all_is_counted_too(house):
    for _ in range(BURST):
        with pytest.raises(RefusedError):
            await house.by_certificate("vmmd", Role.DAEMON)
    with pytest.raises(CallRateError):
        await house.by_certificate("vmmd", Role.DAEMON)
