"""The typed construction values: addresses, secrets, walks and sizes."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from uuid import UUID

import pytest

from stairlib.model.construction import (
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    VolumeSpec,
    as_f32,
    canonical_address,
    regions,
    total_bytes,
    walk,
)
from stairlib.model.geometry import Geometry

ID = UUID("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89")
REGION = RegionSpec(Geometry(512, 100, 4), RegionOptions(ID, ("a:1", "b:1", "c:1")), 1)
FILE = FileSpec(ID, 512, "/image")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("127.0.0.1:8810", "127.0.0.1:8810"),
        ("127.0.0.1:08810", "127.0.0.1:8810"),
        ("[::1]:8810", "[::1]:8810"),
        ("[2001:0DB8:0:0::0001]:1", "[2001:db8::1]:1"),
        ("[::FFFF:10.0.0.1]:1", "[::ffff:10.0.0.1]:1"),
        ("[::ffff:a00:1]:1", "[::ffff:10.0.0.1]:1"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
        ("Downstairs-0.Example:65535", "downstairs-0.example:65535"),
        ("downstairs.:1", "downstairs:1"),
        ("member_1:1", "member_1:1"),
    ],
)
def test_addresses_have_one_spelling(text: str, canonical: str) -> None:
    assert canonical_address(text) == canonical
    assert canonical_address(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be"),
        ("127.0.0.1", "must be"),
        (":8810", "must be"),
        ("127.0.0.1:", "port from 1"),
        ("127.0.0.1:0", "port from 1"),
        ("127.0.0.1:65536", "port from 1"),
        ("127.0.0.1:999999", "port from 1"),
        ("127.0.0.1:+80", "port from 1"),
        ("127.0.0.1:٨٠", "port from 1"),
        ("127.0.0.1:80 ", "port from 1"),
        ("127.0.0.256:1", "four numbers"),
        ("127.0.0.01:1", "four numbers"),
        ("127.0.1:1", "four numbers"),
        ("::1:8810", "brackets"),
        ("[::g]:1", "between the brackets"),
        ("[]:1", "between the brackets"),
        ("-a:1", "host name"),
        ("a..b:1", "host name"),
        ("bad host:1", "host name"),
        ("ümlaut:1", "host name"),
        ("a" * 64 + ":1", "host name"),
        ("http://a:1", "brackets"),
    ],
)
def test_other_texts_are_no_address(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        canonical_address(text)


def test_port_zero_where_something_listens() -> None:
    assert canonical_address("127.0.0.1:0", port_min=0) == "127.0.0.1:0"


def test_options_hold_canonical_values_whoever_builds_them() -> None:
    options = RegionOptions(ID, ("[0::1]:1", "HOST:2"), control="[0::1]:0", flush_timeout=0.1)
    assert options.targets == ("[::1]:1", "host:2")
    assert options.control == "[::1]:0"
    assert options.flush_timeout == as_f32(0.1) != 0.1
    assert options == replace(options, targets=("[::1]:1", "host:02"))
    with pytest.raises(ValueError, match="must be"):
        RegionOptions(ID, ("nowhere",))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_times_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        as_f32(value)


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret("hush")
    options = RegionOptions(
        ID, (), key=secret, cert_pem="CERT", key_pem="KEY", root_cert_pem="ROOT"
    )
    region = RegionSpec(Geometry(512, 1, 1), options, 1)
    shown = repr(region) + str(region) + f"{secret}{secret!r}{secret!s:>9}"
    for text in ("hush", "CERT", "KEY", "ROOT"):
        assert text not in shown
    assert secret.reveal() == "hush"
    assert secret == Secret("hush")
    assert hash(secret) == hash(Secret("hush"))
    assert secret != Secret("other")
    assert secret != "hush"
    assert copy.deepcopy(region) == region
    assert pickle.loads(pickle.dumps(region)) == region


def test_values_are_frozen_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        REGION.generation = 2  # type: ignore[misc]
    assert len({REGION, replace(REGION), replace(REGION, generation=2)}) == 2


def test_walk_gives_paths_in_order() -> None:
    inner = VolumeSpec(ID, 512, (REGION,), FILE)
    volume = VolumeSpec(ID, 512, (REGION, inner), inner)
    assert [path for path, _ in walk(volume)] == [
        "",
        "sub_volumes[0]",
        "sub_volumes[1]",
        "sub_volumes[1].sub_volumes[0]",
        "sub_volumes[1].read_only_parent",
        "read_only_parent",
        "read_only_parent.sub_volumes[0]",
        "read_only_parent.read_only_parent",
    ]
    assert [path for path, _ in regions(volume, "vcr")] == [
        "vcr.sub_volumes[0]",
        "vcr.sub_volumes[1].sub_volumes[0]",
        "vcr.read_only_parent.sub_volumes[0]",
    ]


def test_sizes_add_up_without_the_parent() -> None:
    size = 512 * 100 * 4
    assert total_bytes(VolumeSpec(ID, 512, (REGION, REGION), REGION)) == 2 * size
    assert total_bytes(VolumeSpec(ID, 512, (), REGION)) == size
    assert total_bytes(VolumeSpec(ID, 512, ())) == 0
    assert total_bytes(FILE) == 0
