"""Laws of construction requests over generated trees and over arbitrary JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.core.construction_check import check
from stairlib.model.construction import (
    U32_MAX,
    U64_MAX,
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
    canonical_address,
    regions,
    walk,
)
from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.geometry import Geometry
from stairlib.wire.construction import (
    from_json,
    from_message,
    parse_json,
    parse_object,
    to_json,
    to_message,
)

EXAMPLES = Path(__file__).parents[2] / "examples"

u64 = st.integers(0, U64_MAX)
# A few values that meet often, so that comparisons get past the first difference.
sizes = st.sampled_from([512, 4096]) | u64
text = st.text(max_size=12)
maybe_text = st.none() | st.text(min_size=1, max_size=12)
hosts = st.one_of(
    st.sampled_from(["a", "b", "node-1.example"]),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
addresses = st.builds(lambda host, port: f"{host}:{port}", hosts, st.integers(1, 65535))
options = st.builds(
    RegionOptions,
    id=st.uuids(),
    targets=st.lists(addresses, max_size=4).map(tuple),
    lossy=st.booleans(),
    flush_timeout=st.none()
    | st.floats(allow_nan=False, allow_infinity=False, width=32).filter(bool),
    key=st.none() | st.text(min_size=1, max_size=12).map(Secret),
    cert_pem=maybe_text,
    key_pem=maybe_text,
    root_cert_pem=maybe_text,
    control=st.none() | addresses,
    read_only=st.booleans(),
)
geometries = st.builds(Geometry, sizes, u64, st.integers(0, U32_MAX))
region_specs = st.builds(RegionSpec, geometries, options, u64)
leaves = st.one_of(
    region_specs,
    st.builds(FileSpec, st.uuids(), sizes, text),
    st.builds(UrlSpec, st.uuids(), sizes, text),
)
constructions: st.SearchStrategy[Construction] = st.recursive(
    leaves,
    lambda inner: st.builds(
        VolumeSpec, st.uuids(), sizes, st.lists(inner, max_size=3).map(tuple), st.none() | inner
    ),
    max_leaves=6,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(constructions)
def test_both_forms_are_lossless(construction: Construction) -> None:
    assert from_message(to_message(construction)) == construction
    assert from_json(to_json(construction)) == construction


@given(addresses)
def test_canonical_addresses_stay_as_they_are(address: str) -> None:
    once = canonical_address(address)
    assert canonical_address(once) == once
    assert canonical_address(address.upper()) == once


@given(constructions)
def test_a_hidden_key_is_nowhere(construction: Construction) -> None:
    marked = _with_key(construction, "c2VjcmV0LW1hcms=")
    report = check(marked)
    shown = f"{marked}{report}{to_json(marked, secrets=False)}{to_message(marked, secrets=False)}"
    assert "c2VjcmV0LW1hcms=" not in shown


@given(constructions, constructions)
def test_any_two_compare(original: Construction, replacement: Construction) -> None:
    _obeys_the_contract(original, replacement)


@given(st.data(), constructions)
def test_any_edit_compares(data: st.DataObject, original: Construction) -> None:
    replacement = _edited(data, original)
    found = _obeys_the_contract(original, replacement)
    if original == replacement and not _has_leaf_without_targets(original):
        assert found is Outcome.UNCHANGED


@given(constructions)
def test_any_construction_can_be_checked(construction: Construction) -> None:
    report = check(construction)
    assert report.valid == (not report.violations)
    for violation in report.violations:
        assert violation.field
        assert violation.reason.isupper()
        assert violation.description
    assert report.summary.regions == len(list(regions(construction)))


@given(json_values)
@settings(max_examples=200)
def test_any_json_is_read_or_refused_by_name(value: Any) -> None:
    for parsed in (parse_object(value), parse_json(json.dumps(value))):
        assert (parsed.construction is None) == bool(parsed.violations)


@given(st.data(), constructions)
@settings(max_examples=200)
def test_damaged_requests_are_read_or_refused_by_name(
    data: st.DataObject, construction: Construction
) -> None:
    tree = json.loads(to_json(construction))
    for _ in range(data.draw(st.integers(1, 3))):
        _damage(data, tree)
    parsed = parse_object(tree)
    assert (parsed.construction is None) == bool(parsed.violations)
    if parsed.construction is not None:
        check(parsed.construction)
        compare(construction, parsed.construction)


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_read_or_refused(text_or_bytes: str | bytes) -> None:
    parsed = parse_json(text_or_bytes)
    assert (parsed.construction is None) == bool(parsed.violations)


def test_the_examples_are_legal_and_lead_from_one_to_the_other() -> None:
    disks = json.loads((EXAMPLES / "crucible-disks.json").read_text())
    original = parse_object(disks[0]["volume_construction_request"]).require()
    request = json.loads((EXAMPLES / "replace.json").read_text())
    replacement = parse_object(request["vcr"]).require()
    assert check(original).valid
    assert check(replacement).valid
    found = compare(original, replacement)
    assert found.outcome is Outcome.REPLACE
    assert found.changed is not None
    assert found.changed.path == "sub_volumes[0].opts.target[2]"
    assert (found.changed.old, found.changed.new) == ("127.0.0.1:8830", "127.0.0.1:8840")


def _obeys_the_contract(original: Construction, replacement: Construction) -> Outcome:
    found = compare(original, replacement)
    assert (found.outcome is Outcome.REPLACE) == (found.changed is not None)
    refused = found.outcome in (Outcome.REJECT, Outcome.UNCHANGED)
    assert refused == bool(found.violations)
    paths = {path for path, _ in walk(replacement)} | {path for path, _ in walk(original)}
    for violation in found.violations:
        assert violation.reason.isupper()
        node, _, _ = violation.field.removesuffix(".opts").rpartition(".")
        assert any(
            path in (node, node.removesuffix(".opts"), node.removesuffix("opts")) for path in paths
        )
    if found.changed is not None:
        assert _target(original, found.changed.path) == found.changed.old
        assert _target(replacement, found.changed.path) == found.changed.new
    return found.outcome


def _target(construction: Construction, path: str) -> str | None:
    for at, region in regions(construction):
        for slot, target in enumerate(region.options.targets):
            prefix = f"{at}." if at else ""
            if path == f"{prefix}opts.target[{slot}]":
                return target
    return None


def _has_leaf_without_targets(construction: Construction) -> bool:
    return any(isinstance(node, FileSpec | UrlSpec) for _, node in walk(construction))


def _with_key(construction: Construction, key: str) -> Construction:
    match construction:
        case RegionSpec(options=found):
            return replace(construction, options=replace(found, key=Secret(key)))
        case VolumeSpec(sub_volumes=subs, read_only_parent=parent):
            return replace(
                construction,
                sub_volumes=tuple(_with_key(sub, key) for sub in subs),
                read_only_parent=None if parent is None else _with_key(parent, key),
            )
        case _:
            return construction


def _edited(data: st.DataObject, construction: Construction) -> Construction:
    """The same tree with a few small changes, so that most of it stays comparable."""
    match construction:
        case RegionSpec(options=found):
            if data.draw(st.booleans()):
                rise = data.draw(st.integers(-1, 2))
                generation = min(max(construction.generation + rise, 0), U64_MAX)
                construction = replace(construction, generation=generation)
            if found.targets and data.draw(st.booleans()):
                targets = list(found.targets)
                targets[data.draw(st.integers(0, len(targets) - 1))] = data.draw(addresses)
                construction = replace(construction, options=replace(found, targets=tuple(targets)))
            return construction
        case VolumeSpec(sub_volumes=subs, read_only_parent=parent):
            keep = parent is not None and data.draw(st.integers(0, 3)) > 0
            return replace(
                construction,
                sub_volumes=tuple(_edited(data, sub) for sub in subs),
                read_only_parent=_edited(data, parent) if parent is not None and keep else None,
            )
        case _:
            return construction


def _damage(data: st.DataObject, tree: Any) -> None:
    """Change, drop or add one value somewhere in decoded JSON."""
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        below = at[key]
        if isinstance(below, dict | list) and below and data.draw(st.integers(0, 2)):
            at = below
            continue
        break
    if data.draw(st.booleans()):
        at[key] = data.draw(json_values)
    elif isinstance(at, dict) and data.draw(st.booleans()):
        at[data.draw(st.text(max_size=8))] = data.draw(json_values)
    else:
        del at[key]
