"""The comparison against a table of cases: every rule and every field, from both sides."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from stairlib.model.construction_diff import Outcome, compare
from stairlib.wire.construction import from_object

TABLE = json.loads((Path(__file__).parent / "data" / "construction_compare.json").read_text())
CASES = TABLE["cases"]


def built(value: Any) -> Any:
    """A copy of `value` with every {"$base": name} replaced by that base."""
    if isinstance(value, dict):
        if "$base" in value:
            return built(TABLE["bases"][value["$base"]])
        return {name: built(item) for name, item in value.items()}
    return [built(item) for item in value] if isinstance(value, list) else value


def edited(base: str, edits: dict[str, Any]) -> Any:
    tree = built({"$base": base})
    for path, value in edits.items():
        steps = [int(s) if s.isdigit() else s for s in re.findall(r"\w+", path)]
        if not steps:
            tree = built(value)
            continue
        at = tree
        for step in steps[:-1]:
            at = at[step]
        at[steps[-1]] = built(value)
    return tree


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    original = from_object(edited(case["base"], case.get("original", {})))
    replacement = from_object(edited(case["base"], case.get("replacement", {})))

    found = compare(original, replacement)

    assert found.outcome is Outcome(case["outcome"])
    assert {v.field: v.reason for v in found.violations} == case.get("violations", {})
    assert len(found.violations) == len(case.get("violations", {}))
    if "says" in case:
        assert case["says"] in found.violations[0].description
    assert (found.changed is not None) == (found.outcome is Outcome.REPLACE)
    for name, value in case.get("changed", {}).items():
        assert getattr(found.changed, name) == value


def test_the_table_names_every_case_once() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) > 70


def test_changed_target_names_the_region_it_is_of() -> None:
    original = from_object(edited("layered", {}))
    replacement = from_object(edited("layered", {"read_only_parent.opts.target[2]": "spare:1"}))
    changed = compare(original, replacement).changed
    assert changed is not None
    assert changed.region_id == UUID("3cedae45-3d6e-4d90-b2cb-56f1a1a42a89")


def test_no_secret_is_in_a_violation() -> None:
    old = {"opts.key": "b2xkIHNlY3JldA==", "opts.cert_pem": "old-pem", "opts.key_pem": "old-pem"}
    new = {"opts.key": "bmV3IHNlY3JldA==", "opts.cert_pem": "new-pem", "opts.key_pem": "new-pem"}
    found = compare(from_object(edited("region", old)), from_object(edited("region", new)))
    assert len(found.violations) == 3
    for text in ("b2xkIHNlY3JldA==", "bmV3IHNlY3JldA==", "old-pem", "new-pem"):
        assert text not in repr(found)
