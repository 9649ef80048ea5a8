"""Whether a port can be had."""

import socket

import pytest

from stairlib.runtime.ports import can_listen


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_port_that_somebody_listens_on_cannot_be_had(family, host):
    with socket.socket(family) as owner:
        try:
            owner.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is no address here")
        owner.listen()
        port = owner.getsockname()[1]
        assert not can_listen(host, port)
    assert can_listen(host, port)


def test_nor_one_of_another_host():
    assert not can_listen("192.0.2.1", 0)
