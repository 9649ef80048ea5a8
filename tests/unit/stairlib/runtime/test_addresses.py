"""Addresses in the forms users write them, and in no other."""

import pytest

from stairlib.model.errors import InvalidRequestError
from stairlib.runtime.addresses import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("127.0.0.1:8810", Address("127.0.0.1", 8810), "127.0.0.1:8810"),
        ("localhost:0", Address("localhost", 0), "localhost:0"),
        ("DS1.Example.Org.:65535", Address("ds1.example.org", 65535), "ds1.example.org:65535"),
        ("ds_1:08810", Address("ds_1", 8810), "ds_1:8810"),
        ("[::1]:8810", Address("::1", 8810), "[::1]:8810"),
        ("[FD00:0:0::1]:1", Address("fd00::1", 1), "[fd00::1]:1"),
        ("unix:/run/x.sock", Address("", 0, "/run/x.sock"), "unix:/run/x.sock"),
        ("unix:///run/x.sock", Address("", 0, "/run/x.sock"), "unix:/run/x.sock"),
        ("unix:here.sock", Address("", 0, "here.sock"), "unix:here.sock"),
    ],
)
def test_a_good_address(text, address, canonical):
    parsed = parse_address(text)
    assert parsed == address
    assert str(parsed) == canonical
    assert parse_address(canonical) == parsed
    assert parsed.is_unix is text.startswith("unix:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        ":8810",
        "localhost:",
        "localhost:65536",
        "localhost:99999999999999999999",
        "localhost:-1",
        "localhost:+1",
        "localhost:8_8",
        "localhost:٣",
        "::1:8810",
        "[::1]8810",
        "[::g]:1",
        "[127.0.0.1]:1",
        "127.0.0.256:1",
        "127.1:1",
        "host name:1",
        "-host:1",
        "a..b:1",
        "http://host:1",
        "x" * 254 + ":1",
        "unix:",
        "unix:/a\0b",
        "unix:/" + "x" * 107,
    ],
)
def test_a_bad_address(text):
    with pytest.raises(InvalidRequestError) as raised:
        parse_address(text)
    assert raised.value.reason == "INVALID_ADDRESS"


def test_the_port_can_be_changed():
    assert str(parse_address("[::1]:0").with_port(81)) == "[::1]:81"
