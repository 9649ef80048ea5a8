"""Ports, ids and places of the members."""

from typing import Any
from uuid import UUID

import pytest

from downstaird.dsc.core.layout import MEMBERS_MAX, MemberPlan, plan_members
from stairlib.model.errors import InvalidRequestError


def planned(**changes: Any) -> tuple[MemberPlan, ...]:
    flags = {
        "count": 4,
        "port_base": 8810,
        "port_step": 10,
        "region_dirs": ["/var/tmp/dsc/region"],
        "output_dir": "/tmp/dsc",
    }
    return plan_members(**(flags | changes))


def test_the_documents_four() -> None:
    members = planned()
    assert [member.port for member in members] == [8810, 8820, 8830, 8840]
    assert members[3] == MemberPlan(
        3,
        8840,
        UUID("12345678-0000-0000-0000-000000008840"),
        "/var/tmp/dsc/region/8840",
        "/tmp/dsc/downstairs-8840.txt",
    )


def test_a_directory_for_each_member() -> None:
    members = planned(count=2, region_dirs=["/a", "/b"])
    assert [member.directory for member in members] == ["/a/8810", "/b/8820"]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"count": 0}, "--region-count"),
        ({"count": MEMBERS_MAX + 1}, "--region-count"),
        ({"region_dirs": ["/a", "/b"]}, "--region-dir"),
        ({"region_dirs": []}, "--region-dir"),
        ({"port_step": 1}, "--port-step"),
        ({"port_base": 0}, "--port-base"),
        ({"port_base": 65530}, "--port-base"),
    ],
)
def test_flags_that_make_no_sense(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(InvalidRequestError, match=flag) as caught:
        planned(**changes)
    assert [violation.field for violation in caught.value.violations] == [flag]


def test_the_last_legal_port() -> None:
    assert planned(port_base=65505)[-1].port == 65535
