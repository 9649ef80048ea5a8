"""The check against a table of cases: every reason there is, from both sides."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from controlplane.core import construction_check
from stairlib.wire import construction as wire
from stairlib.wire import construction_reader
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest
from tests.unit.stairlib.model.case_trees import Table

TABLE = Table(Path(__file__).parent / "data" / "construction_check.json")
# What cases cannot spell, since it takes a text of its own or too long a one: named with the test
# that shows it.
ELSEWHERE = {
    "INVALID_JSON": "tests/unit/stairlib/wire/test_construction.py",
    "TOO_LARGE": "tests/unit/stairlib/wire/test_construction.py",
    "DUPLICATE_KEY": "tests/unit/stairlib/wire/test_construction.py",
    "TOO_DEEP": "tests/unit/stairlib/wire/test_construction.py",
    "TOO_MANY_NODES": "tests/unit/stairlib/wire/test_construction.py",
}


def request(case: dict[str, Any]) -> Any:
    return TABLE.edited(case["base"], case.get("set", {}), tuple(case.get("drop", ())))


@pytest.mark.parametrize("case", TABLE.cases, ids=lambda case: f"{case['rule']} {case['name']}")
def test_case(case: dict[str, Any]) -> None:
    parsed = wire.parse_json(json.dumps(request(case)))
    expected = case.get("violations", {})
    if parsed.draft is None:
        assert {v.field: v.reason for v in parsed.violations} == expected
        return
    report = construction_check.check(parsed.draft, unread=parsed.unread)
    found = parsed.violations + report.violations

    assert {v.field: v.reason for v in found} == expected
    assert len(found) == len(expected)
    assert (parsed.construction is None) == bool(parsed.violations)
    if "says" in case:
        assert case["says"] in found[0].description
    for name, value in case.get("summary", {}).items():
        assert getattr(report.summary, name) == value, name


@pytest.mark.parametrize("case", TABLE.cases, ids=lambda case: f"{case['rule']} {case['name']}")
def test_case_as_a_message(case: dict[str, Any]) -> None:
    """A message says the same as the text, as far as it can spell it."""
    value = request(case)
    parsed = wire.parse_object(value)
    try:
        message = json_format.ParseDict(value, VolumeConstructionRequest())
    except json_format.ParseError:
        assert parsed.violations, "only what cannot be read cannot be a message"
        return
    again = wire.parse_message(message)
    if parsed.construction is not None:
        assert again == parsed
        report = construction_check.check(parsed.construction)
        assert {v.field: v.reason for v in report.violations} == case.get("violations", {})
    else:
        # Tools make fields of empty arrays and of numbers in quotes: there may be less to tell, or
        # something below the field that is told as text.
        told = tuple(v.field for v in parsed.violations)
        assert all(v.field.startswith(told) for v in again.violations)


def test_every_reason_has_a_case_that_meets_it_and_a_legal_neighbour() -> None:
    sources = (construction_check, construction_reader, wire)
    text = "".join(Path(module.__file__).read_text() for module in sources)
    reasons = set(re.findall(r'"((?:[A-Z]+_)+[A-Z]+|EMPTY|REQUIRED)"', text))
    refused = {reason for case in TABLE.cases for reason in case.get("violations", {}).values()}
    legal = {case["rule"] for case in TABLE.cases if not case.get("violations")}
    # A size above 64 bits takes an extent above its own limit: there is no legal neighbour.
    assert "SIZE_OVERFLOW" in legal
    assert reasons - refused - set(ELSEWHERE) == set()
    assert reasons - legal - set(ELSEWHERE) == set()
    assert len(reasons) > 25


def test_reasons_without_a_case_have_their_test() -> None:
    root = Path(__file__).parents[4]
    for reason, path in ELSEWHERE.items():
        assert f'"{reason}"' in (root / path).read_text()


def test_every_field_is_wrong_in_some_case() -> None:
    named = {
        re.split(r"[.\]]", re.sub(r"\[\d+\]$", "", field))[-1]
        for case in TABLE.cases
        for field in case.get("violations", {})
    }
    fields = {"type", "id", "block_size", "sub_volumes", "read_only_parent", "path", "url"}
    fields |= {"blocks_per_extent", "extent_count", "gen", "opts"}
    fields |= {"target", "lossy", "flush_timeout", "key", "cert_pem", "key_pem", "root_cert_pem"}
    fields |= {"control", "read_only"}
    assert fields - named == set()


def test_the_table_names_every_case_once() -> None:
    names = [(case["rule"], case["name"]) for case in TABLE.cases]
    assert len(set(names)) == len(names) > 120
