"""The address a client is told for its data connection."""

import socket
from contextlib import suppress

import pytest

from downstaird.services.block_service import DataPlace, local_address_towards


@pytest.mark.parametrize(
    ("place", "peer", "address"),
    [
        (DataPlace("10.1.2.3", 9, None), "ipv4:127.0.0.1:5", "10.1.2.3:9"),
        (DataPlace("member-1", 9, None), "ipv4:127.0.0.1:5", "member-1:9"),
        (DataPlace("fd00::1", 9, None), "ipv4:127.0.0.1:5", "[fd00::1]:9"),
        (DataPlace("", 9, None), "ipv4:127.0.0.1:5", "127.0.0.1:9"),
        (DataPlace("", 9, None), "unix:", "127.0.0.1:9"),
        (DataPlace("", 9, None), "nonsense", "127.0.0.1:9"),
    ],
)
def test_the_address(place, peer, address):
    assert place.address_for(peer) == address


def test_a_peer_on_ipv6_is_told_an_address_of_ipv6():
    available = False
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.connect(("::1", 9))
        available = True
    expected = "::1" if available else "127.0.0.1"
    assert local_address_towards("ipv6:%5B::1%5D:5") == expected
