"""The comparison against a table of cases: every rule and every field, from both sides."""

import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.violations import VIOLATIONS_MAX
from stairlib.wire.construction import from_object
from tests.unit.stairlib.model.case_trees import Table
from tests.unit.stairlib.model.literal_comparison import RULES, outcome

DATA = Path(__file__).parent / "data"
TABLE = Table(DATA / "construction_compare.json", DATA / "construction_compare_fields.json")
CASES = TABLE.cases
edited = TABLE.edited


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
    assert compare(replacement, original).outcome is Outcome(case["swapped"])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case_by_the_rules_one_after_another(case: dict[str, Any]) -> None:
    original = from_object(edited(case["base"], case.get("original", {})))
    replacement = from_object(edited(case["base"], case.get("replacement", {})))
    assert outcome(original, replacement)[0] == case["outcome"]
    assert outcome(replacement, original)[0] == case["swapped"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_case_that_it_refuses_and_one_that_it_lets_pass(rule: str) -> None:
    named = [case for case in CASES if case["name"].split()[0] == rule]
    assert any(case["outcome"] in ("replace", "generation_only") for case in named)
    assert any(case["outcome"] in ("reject", "unchanged") for case in named)


def test_the_rules_that_refuse_first_are_those_the_cases_are_named_for() -> None:
    """Each rule is in fact the first to fail in some case, so that none hides behind another."""
    first = set()
    for case in CASES:
        original = from_object(edited(case["base"], case.get("original", {})))
        replacement = from_object(edited(case["base"], case.get("replacement", {})))
        first.add(outcome(original, replacement)[1])
    # Rules that let pass and lead on to others, and never refuse by themselves.
    assert set(RULES) - first == {"V4", "G0", "T5"}


def test_every_field_changes_in_some_case_on_either_side() -> None:
    fields = set()
    for case in CASES:
        for side in ("original", "replacement"):
            edits = {path: value for path, value in case.get(side, {}).items() if path}
            tree = edited(case["base"], edits)
            fields |= {(side, *_field(tree, path)) for path in edits}
    opts = ("id", "target", "lossy", "flush_timeout", "key", "cert_pem", "key_pem")
    opts += ("root_cert_pem", "control", "read_only")
    region = ("block_size", "blocks_per_extent", "extent_count", "gen", *opts)
    for side in ("original", "replacement"):
        for name in region:
            assert (side, "region", name) in fields, (side, name)
    for name in ("id", "block_size", "sub_volumes", "read_only_parent"):
        assert ("replacement", "volume", name) in fields, name
    for kind, name in (("file", "path"), ("url", "url")):
        for each in ("id", "block_size", name):
            assert ("replacement", kind, each) in fields, each


def _field(tree: Any, path: str) -> tuple[str, str]:
    """The type of the node that a case edits, and the name of the field."""
    name = re.sub(r"\[\d+\]$", "", path).split(".")[-1]
    node = re.sub(r"(^|\.)(opts\.)?[a-z_]+(\[\d+\])?$", "", path)
    for key, index in re.findall(r"([a-z_]+)(?:\[(\d+)\])?", node):
        tree = tree[key][int(index)] if index else tree[key]
    return tree["type"], name


def test_the_table_names_every_case_once() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) > 250


def test_a_list_of_problems_is_bounded_and_the_rest_counted() -> None:
    many = [edited("region", {})] * 600
    old = from_object(edited("volume", {"sub_volumes": many}))
    new = from_object(edited("volume", {"sub_volumes": [r | {"gen": 0} for r in many]}))
    worse = from_object(
        edited("volume", {"sub_volumes": [r | {"gen": 0, "extent_count": 9} for r in many]})
    )
    assert (len(compare(old, new).violations), compare(old, new).omitted) == (600, 0)
    found = compare(old, worse)
    assert (len(found.violations), found.omitted) == (VIOLATIONS_MAX, 200)


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
