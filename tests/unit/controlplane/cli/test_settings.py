"""Where the global options say the control plane is."""

import pytest

from controlplane.cli.settings import Settings, join_address


@pytest.mark.parametrize(
    ("server", "port", "address"),
    [
        ("127.0.0.1", None, "127.0.0.1:55400"),
        ("127.0.0.1", 1234, "127.0.0.1:1234"),
        ("cp.example", 1234, "cp.example:1234"),
        ("cp.example:9", None, "cp.example:9"),
        ("cp.example:9", 10, "cp.example:10"),
        ("::1", None, "[::1]:55400"),
        ("[::1]", 7, "[::1]:7"),
        ("[::1]:8", None, "[::1]:8"),
        ("unix:/run/cp.sock", 7, "unix:/run/cp.sock"),
    ],
)
def test_address(server, port, address):
    assert join_address(server, port) == address


def test_the_default_is_the_documented_address():
    assert Settings().address == "127.0.0.1:55400"
