"""The control plane's question to downstairs that speak TLS."""

from __future__ import annotations

import dataclasses

import pytest

from controlplane.peers.downstairs import Fleet
from stairlib.model.construction import RegionOptions
from stairlib.model.errors import StateError, UnavailableError
from stairlib.rpc.tls import TlsFiles
from stairlib.telemetry.tracing import Tracing
from tests.certificates import SLOT_NAMES
from tests.contract.tls.conftest import GEOMETRY

FLAGS = ("--downstairs-cert-pem", "--downstairs-key-pem", "--downstairs-root-cert-pem")


@pytest.fixture
def tracing():
    found = Tracing("controlplane", "test")
    yield found
    found.shutdown()


@pytest.fixture
async def secure(serve, authority):
    return await serve(authority.issue("server", *SLOT_NAMES))


@pytest.fixture
def own(authority):
    files = authority.issue("controlplane")
    return dataclasses.replace(files, names=FLAGS)


def options(daemons, files: TlsFiles | None) -> RegionOptions:
    paths = {}
    if files is not None:
        paths = {"cert_pem": files.cert, "key_pem": files.key, "root_cert_pem": files.root}
    return RegionOptions(daemons.ids[0], tuple(daemons.addresses), **paths)


async def ask(fleet, daemons, region=None, slot=None):
    facts = await fleet.region(daemons.addresses[0], field="vcr.x", options=region, slot=slot)
    assert facts.geometry == GEOMETRY
    assert facts.region_id == daemons.ids[0]


async def test_it_asks_with_the_files_of_the_request(secure, client, tracing):
    await ask(Fleet(tracing), secure, options(secure, client), 1)


async def test_it_asks_with_its_own_files_where_it_has_some(secure, own, tracing):
    elsewhere = TlsFiles("/vmmd/only/c.pem", "/vmmd/only/k.pem", "/vmmd/only/r.pem")
    await ask(Fleet(tracing, own), secure, options(secure, elsewhere))
    await ask(Fleet(tracing, own), secure)


async def test_a_region_in_plain_text_is_asked_in_plain_text(serve, own, tracing):
    plain = await serve(None)
    await ask(Fleet(tracing, own), plain, options(plain, None))
    await ask(Fleet(tracing), plain)


async def test_files_of_the_request_must_be_on_its_host_too(secure, tracing):
    elsewhere = TlsFiles("/vmmd/only/c.pem", "/vmmd/only/k.pem", "/vmmd/only/r.pem")
    with pytest.raises(StateError) as caught:
        await ask(Fleet(tracing), secure, options(secure, elsewhere))
    assert caught.value.reason == "TLS_FILE"
    for part in ("opts.cert_pem: /vmmd/only/c.pem", "must be on its host too", FLAGS[0]):
        assert part in caught.value.message
    missing = TlsFiles("/none/c.pem", "/none/k.pem", "/none/r.pem", FLAGS)
    with pytest.raises(StateError) as caught:
        await ask(Fleet(tracing, missing), secure)
    assert caught.value.message.startswith(f"{FLAGS[0]}: /none/c.pem cannot be read")
    assert "must be on its host too" not in caught.value.message


async def refusal(call) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        await call
    assert caught.value.reason == "TARGET_UNREACHABLE"
    assert caught.value.metadata["field"] == "vcr.x"
    return caught.value


async def test_what_does_not_fit_says_what_to_do(serve, authority, client, own, tracing):
    third = await serve(authority.issue("third", "downstairs2"))
    error = await refusal(ask(Fleet(tracing), third, options(third, client), 0))
    assert error.metadata["cause"] == "TLS_NAME"
    await ask(Fleet(tracing), third, options(third, client), 2)
    error = await refusal(ask(Fleet(tracing), third))
    assert error.metadata["cause"] == "TLS_NEEDED"
    assert FLAGS[0] in error.message
    plain = await serve(None)
    error = await refusal(ask(Fleet(tracing, own), plain))
    assert error.metadata["cause"] == "TLS_NOT_SPOKEN"
    assert FLAGS[0] in error.message
