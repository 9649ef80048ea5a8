"""Whom the guard counts as one caller, and what it tells."""

from __future__ import annotations

import pytest

from stairlib.model.call_rate import CallRate
from stairlib.model.errors import CallRateError
from stairlib.rpc.access import ANYBODY, Caller, Role, Shown
from stairlib.rpc.call_guard import CallGuard, peer_host

LOOK = "/stairwell.controlplane.v1.DiskService/ListDisks"
INNER = "/stairwell.vmmd.v1.VolumeService/GetVolumeInfo"


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::1%5D:80", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", "fe80::/64"),
        ("ipv6:[::ffff:10.0.0.1]:80", "10.0.0.1"),
        ("unix:", ""),
        ("unix:/run/x.sock", ""),
        ("ipv4:something-else", "something-else"),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert peer_host(peer) == host


def guard(*, spares_daemons: bool = False) -> CallGuard:
    return CallGuard(CallRate(2, 1), spares_daemons=spares_daemons, clock=lambda: 5.0)


def person(name: str, shown: Shown = Shown.CERTIFICATE) -> Caller:
    return Caller(name, frozenset({Role.OPERATOR}), shown)


def test_a_name_counts_wherever_it_comes_from_and_a_token_is_not_a_certificate() -> None:
    found = guard()
    found.admit(person("otto"), LOOK, "ipv4:10.0.0.1:1")
    with pytest.raises(CallRateError) as refused:
        found.admit(person("otto"), LOOK, "ipv4:10.0.0.2:1")
    assert refused.value.retry_seconds == 0.5
    assert refused.value.metadata == {"caller": "otto"}
    assert "otto makes more than 2 calls a second here: try again in 0.5 s" in str(refused.value)
    found.admit(person("otto", Shown.TOKEN), LOOK, "ipv4:10.0.0.1:1")
    found.admit(person("eve"), LOOK, "ipv4:10.0.0.1:1")
    assert found.refused == {Shown.CERTIFICATE: 1}


def test_ports_of_one_address_are_one_caller_and_a_unix_socket_is_none() -> None:
    found = guard()
    found.admit(ANYBODY, LOOK, "ipv4:10.0.0.1:1")
    with pytest.raises(CallRateError):
        found.admit(ANYBODY, LOOK, "ipv4:10.0.0.1:2")
    found.admit(ANYBODY, LOOK, "ipv4:10.0.0.2:1")
    for _ in range(5):
        found.admit(ANYBODY, LOOK, "unix:")


def test_daemons_are_spared_where_that_is_said() -> None:
    daemon = Caller("vmmd", frozenset({Role.DAEMON}), Shown.CERTIFICATE)
    inner = guard(spares_daemons=True)
    for caller in (daemon, ANYBODY) * 3:
        inner.admit(caller, INNER, "ipv4:10.0.0.1:1")
    inner.admit(person("otto"), INNER, "ipv4:10.0.0.1:1")
    with pytest.raises(CallRateError):
        inner.admit(person("otto"), INNER, "ipv4:10.0.0.1:1")
    outer = guard()
    outer.admit(daemon, INNER, "ipv4:10.0.0.1:1")
    with pytest.raises(CallRateError):
        outer.admit(daemon, INNER, "ipv4:10.0.0.1:1")


def test_a_daemon_s_certificate_is_not_spared_for_what_daemons_may_not_call() -> None:
    daemon = Caller("vmmd", frozenset({Role.DAEMON}), Shown.CERTIFICATE)
    found = guard(spares_daemons=True)
    found.admit(daemon, LOOK, "ipv4:10.0.0.1:1")
    with pytest.raises(CallRateError):
        found.admit(daemon, LOOK, "ipv4:10.0.0.1:1")


def test_without_a_rate_nobody_is_refused() -> None:
    found = CallGuard(None, spares_daemons=False)
    for _ in range(100):
        found.admit(ANYBODY, LOOK, "ipv4:10.0.0.1:1")
