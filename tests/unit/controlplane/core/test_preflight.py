"""Which downstairs may become a member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from controlplane.core.preflight import RegionFacts, judge
from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV
from stairlib.model.errors import StateError
from stairlib.model.geometry import Geometry
from tests.unit.controlplane.core.records_made import GEOMETRY, VOLUME, region

FACTS = RegionFacts(
    region_id=UUID(int=40), geometry=GEOMETRY, encrypted=False, read_only=False, owner_id=None,
    active_session_id=None,
)  # fmt: skip
SIBLINGS = {"a:1": UUID(int=41), "b:2": UUID(int=42)}
PLAIN_SIBLINGS = {"a:1": "", "b:2": ""}


def judged(
    facts: RegionFacts,
    ciphers: Mapping[str, str] = PLAIN_SIBLINGS,
    *,
    siblings_written: bool = False,
    key_checks: Mapping[str, bytes] = {},
    **changes: Any,
) -> str:
    """The reason of the refusal, empty when there is none."""
    try:
        judge(
            target="n:4",
            field="vcr.f",
            region=region(**changes),
            facts=facts,
            siblings=SIBLINGS,
            ciphers=ciphers,
            key_checks=key_checks,
            siblings_written=siblings_written,
        )
    except StateError as caught:
        refusal = caught
    else:
        return ""
    assert refusal.metadata["target"] == "n:4"
    assert refusal.metadata["field"] == "vcr.f"
    assert "n:4" in refusal.message
    return refusal.reason


def test_one_that_fits_and_is_free() -> None:
    assert judged(FACTS) == ""
    assert judged(replace(FACTS, owner_id=VOLUME)) == "", "it was ours before"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"geometry": Geometry(512, 131072, 128)}, "TARGET_GEOMETRY_MISMATCH"),
        ({"geometry": Geometry(4096, 16384, 127)}, "TARGET_GEOMETRY_MISMATCH"),
        ({"encrypted": True}, "TARGET_ENCRYPTION_MISMATCH"),
        ({"read_only": True}, "TARGET_READ_ONLY_MISMATCH"),
        ({"region_id": UUID(int=42)}, "TARGET_IN_USE"),
        ({"owner_id": UUID(int=1)}, "TARGET_IN_USE"),
        ({"active_session_id": UUID(int=1)}, "TARGET_IN_USE"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert judged(replace(FACTS, **changes)) == reason


def test_a_volume_with_a_key_wants_an_encrypted_one() -> None:
    assert judged(FACTS, key="k" * 44) == "TARGET_ENCRYPTION_MISMATCH"
    encrypted = replace(FACTS, encrypted=True, cipher=AES_256_GCM)
    assert judged(encrypted, {"a:1": AES_256_GCM}, key="k" * 44) == ""
    assert judged(encrypted, {}, key="k" * 44) == "", "its siblings are away"


def test_all_members_are_encrypted_alike() -> None:
    facts = replace(FACTS, encrypted=True, cipher=AES_256_GCM)
    others = {"a:1": AES_256_GCM, "b:2": AES_256_GCM_SIV}
    assert judged(facts, others, key="k" * 44) == "TARGET_CIPHER_MISMATCH"
    assert judged(facts, {"a:1": ""}, key="k" * 44) == "TARGET_CIPHER_MISMATCH"
    for unknown in ("rot13", ""):
        strange = replace(facts, cipher=unknown)
        assert judged(strange, {"a:1": unknown}, key="k" * 44) == "TARGET_CIPHER_UNKNOWN"


def test_one_that_was_ours_under_another_key() -> None:
    ours = replace(FACTS, encrypted=True, cipher=AES_256_GCM, owner_id=VOLUME, key_check=b"k" * 16)
    for checks, reason in (
        ({}, ""),
        ({"a:1": b"k" * 16, "b:2": b"k" * 16}, ""),
        ({"a:1": b""}, ""),
        ({"a:1": b"k" * 16, "b:2": b"o" * 16}, "TARGET_KEY_MISMATCH"),
    ):
        assert judged(ours, {}, key="k" * 44, key_checks=checks) == reason
    blank = replace(ours, owner_id=None, key_check=b"")
    assert judged(blank, {}, key="k" * 44, key_checks={"a:1": b"o" * 16}) == ""
    assert "kkkk" not in repr(ours)


def test_read_only_regions_are_shared() -> None:
    shared = replace(FACTS, read_only=True, owner_id=UUID(int=1), active_session_id=UUID(int=2))
    assert judged(shared, read_only=True) == ""
    again = replace(shared, region_id=UUID(int=41))
    assert judged(again, read_only=True) == "TARGET_IN_USE", "but no member is counted twice"


def test_a_read_only_region_takes_no_empty_member_beside_one_that_holds_something() -> None:
    blank = replace(FACTS, read_only=True)
    assert judged(blank, siblings_written=True, read_only=True) == "TARGET_BLANK"
    assert judged(replace(blank, written=True), siblings_written=True, read_only=True) == ""
    assert judged(blank, read_only=True) == "", "all are empty"
    assert judged(FACTS, siblings_written=True) == "", "a writable one is filled"
