"""What a request for an instance may not say."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.core.instance_check import DiskRequest, check_instance
from tests.unit.controlplane.core.records_made import region, volume


def request(**changes: Any) -> DiskRequest:
    fields = {"device": "nvme", "name": "block2", "slot": 3, "read_only": False}
    return DiskRequest(**{**fields, "construction": volume(), **changes})


def reasons(*disks: DiskRequest, name: str = "crub", **sizes: int) -> dict[str, str]:
    return {each.field: each.reason for each in check_instance(name, disks, **sizes)}


def test_a_good_one() -> None:
    assert reasons(request()) == {}
    assert reasons() == {}, "an instance may have no disk"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "MISSING"),
        ("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89", "NAME_LOOKS_LIKE_ID"),
        ("a0cedae453d6e4d90b2cb56f1a1a42a8", "NAME_LOOKS_LIKE_ID"),
        ("1st", "BAD_NAME"),
        ("a b", "BAD_NAME"),
        ("a" * 64, "BAD_NAME"),
        ("a\n", "BAD_NAME"),
    ],
)
def test_names(name: str, reason: str) -> None:
    assert reasons(name=name) == {"name": reason}
    assert reasons(request(name=name)) == {"disks[0].name": reason}


def test_sizes() -> None:
    assert reasons(cpus=65, memory_mib=1 << 21) == {
        "cpus": "TOO_LARGE",
        "memory_mib": "TOO_LARGE",
    }
    nine = [request(name=f"d{number}", slot=number, construction=None) for number in range(9)]
    assert reasons(*nine) == {"disks": "TOO_MANY", "disks[8].slot": "SLOT_OUT_OF_RANGE"}


def test_all_is_found_at_once_with_the_construction_s_own_paths() -> None:
    found = reasons(request(device="floppy", slot=9, construction=volume(region(("a:1",)))))
    assert found.pop("disks[0].device") == "UNKNOWN_DEVICE"
    assert found.pop("disks[0].slot") == "SLOT_OUT_OF_RANGE"
    (path,) = found
    assert path.startswith("disks[0].volume_construction_request.sub_volumes[0].opts.target")


def test_two_disks_that_want_the_same() -> None:
    found = reasons(request(), request(name="other", slot=4, construction=region()))
    prefix = "disks[1].volume_construction_request"
    assert found[f"{prefix}.id"] == "DUPLICATE_VOLUME"
    assert found[f"{prefix}.opts.target[0]"] == "DUPLICATE_TARGET"
