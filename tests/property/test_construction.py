"""Laws of construction requests over generated trees and over arbitrary JSON."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from controlplane.cli import tree_diff
from controlplane.core.construction_check import CheckReport, check
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
    join_path,
    regions,
    walk,
)
from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.geometry import Geometry
from stairlib.model.violations import VIOLATIONS_MAX
from stairlib.wire.construction import (
    Parsed,
    from_json,
    from_message,
    parse_json,
    parse_message,
    parse_object,
    to_json,
    to_message,
    to_object,
)
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest
from tests.unit.stairlib.model.literal_comparison import outcome

EXAMPLES = Path(__file__).parents[2] / "examples"

# Keys: a legal one, one too short, no base64, not even ASCII. None may be part of any other text.
SECRETS = (
    "c2VjcmV0LW1hcmsgb2YgZXhhY3RseSB0aGlydHktMiE=",
    "c2VjcmV0LW1hcms=",
    "secret-mark",
    "sécret-märk",
)
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
    message = to_message(construction)
    assert from_message(VolumeConstructionRequest.FromString(message.SerializeToString())) == (
        construction
    )
    assert from_json(to_json(construction)) == construction
    assert to_object(from_message(message)) == json.loads(to_json(construction))
    assert to_message(from_json(to_json(construction))) == message


@given(addresses)
def test_canonical_addresses_stay_as_they_are(address: str) -> None:
    once = canonical_address(address)
    assert canonical_address(once) == once
    assert canonical_address(address.upper()) == once


@given(st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){2,4}:[0-9]{1,6}", fullmatch=True))
def test_an_ipv4_address_is_kept_as_it_is_or_refused(text: str) -> None:
    """The quick way through for the usual spelling takes what the library takes, and no more."""
    host, _, port = text.rpartition(":")
    try:
        IPv4Address(host)
        legal = len(port) <= 5 and 1 <= int(port) <= 65535
    except ValueError:
        legal = False
    try:
        assert canonical_address(text) == f"{host}:{int(port)}"
        assert legal
    except ValueError:
        assert not legal


@given(constructions, constructions, st.integers(0, 3))
def test_a_secret_is_nowhere(construction: Construction, other: Construction, odd: int) -> None:
    """No key, whatever is wrong with it, and no PEM text that stands where a path belongs."""
    secret = SECRETS[odd]
    marked = _with_secrets(construction, secret, f"-----BEGIN PRIVATE KEY-----{secret}")
    found = (check(marked), compare(marked, other), compare(other, marked))
    shown = f"{marked!r}{marked}{found}"
    shown += f"{to_json(marked, secrets=False)}{to_message(marked, secrets=False)}"
    assert secret not in shown


@given(st.data(), constructions)
def test_a_secret_is_nowhere_in_what_is_said_of_a_damaged_request(
    data: st.DataObject, construction: Construction
) -> None:
    secret = SECRETS[0]
    marked = _with_secrets(construction, secret, f"-----BEGIN PRIVATE KEY-----{secret}")
    tree = json.loads(to_json(marked))
    for _ in range(data.draw(st.integers(1, 3))):
        _damage(data, tree)
    parsed = parse_object(tree)
    said = [parsed, parsed.violations]
    if parsed.draft is not None:
        said.append(check(parsed.draft, unread=parsed.unread))
    assert secret not in repr(said)


@given(constructions, constructions)
def test_any_two_compare(original: Construction, replacement: Construction) -> None:
    _obeys_the_contract(original, replacement)


@given(st.data(), constructions)
def test_any_edit_compares(data: st.DataObject, original: Construction) -> None:
    replacement = _edited(data, original)
    found = _obeys_the_contract(original, replacement)
    if original == replacement and not _has_leaf_without_targets(original):
        assert found is Outcome.UNCHANGED


@given(st.data(), constructions)
def test_any_two_can_be_shown_side_by_side(data: st.DataObject, original: Construction) -> None:
    secret = SECRETS[0]
    original = _with_secrets(original, secret, f"-----BEGIN PRIVATE KEY-----{secret}")
    replacement = data.draw(st.just(_edited(data, original)) | constructions)
    found = compare(original, replacement)
    rows = tree_diff.rows(original, replacement, [one.field for one in found.violations])
    noted = sorted(number for row in rows for number in row.notes)
    assert noted == list(range(1, len(found.violations) + 1))
    if original != replacement:
        assert tree_diff.differences(rows)
    text = StringIO()
    Console(file=text, width=data.draw(st.integers(20, 120)), markup=False).print(
        tree_diff.table(rows, "old", "new")
    )
    assert secret not in text.getvalue() + repr(rows)


@given(constructions)
def test_any_construction_can_be_checked(construction: Construction) -> None:
    report = check(construction)
    _is_a_sound_report(report, len(list(regions(construction))))


@given(json_values)
@settings(max_examples=200)
def test_any_json_is_read_or_refused_by_name(value: Any) -> None:
    for parsed in (parse_object(value), parse_json(json.dumps(value))):
        _is_judged(parsed)


@given(st.data(), constructions)
@settings(max_examples=200)
def test_damaged_requests_are_read_or_refused_by_name(
    data: st.DataObject, construction: Construction
) -> None:
    tree = json.loads(to_json(construction))
    for _ in range(data.draw(st.integers(1, 3))):
        _damage(data, tree)
    parsed = parse_object(tree)
    _is_judged(parsed)
    if parsed.construction is not None:
        _obeys_the_contract(construction, parsed.construction)


@given(st.data(), constructions)
@settings(max_examples=200)
def test_what_is_wrong_by_itself_is_told_whatever_else_cannot_be_read(
    data: st.DataObject, construction: Construction
) -> None:
    """A generation of 0 in a region that stays readable is in every answer."""
    tree = json.loads(to_json(_with_generation_zero(construction)))
    zeros = {join_path(at, "gen") for at, _ in regions(construction)}
    _damage(data, tree)
    parsed = parse_object(tree)
    assume(parsed.draft is not None)
    report = check(parsed.draft, unread=parsed.unread)
    still = {join_path(at, "gen") for at, r in regions(parsed.draft) if r.generation == 0}
    told = {v.field for v in (*parsed.violations, *report.violations)}
    assert (zeros & still) - told == set()


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_read_or_refused(text_or_bytes: str | bytes) -> None:
    _is_judged(parse_json(text_or_bytes))


@given(st.binary(max_size=200), constructions)
def test_any_message_is_read_or_refused(noise: bytes, construction: Construction) -> None:
    """Whatever decodes as a message; noise after a good one overrides fields of it."""
    for data in (noise, to_message(construction).SerializeToString() + noise):
        try:
            message = VolumeConstructionRequest.FromString(data)
        except DecodeError:
            continue
        _is_judged(parse_message(message))


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


def _is_judged(parsed: Parsed) -> None:
    """A reading is whole or says why not, and a check of what it read says no nonsense."""
    assert (parsed.construction is None) == bool(parsed.violations)
    assert len(parsed.violations) <= VIOLATIONS_MAX
    assert parsed.construction in (None, parsed.draft)
    if parsed.draft is None:
        return
    report = check(parsed.draft, unread=parsed.unread)
    assert not {v.field for v in report.violations} & parsed.unread
    if parsed.construction is not None:
        _is_a_sound_report(report, len(list(regions(parsed.construction))))


def _is_a_sound_report(report: CheckReport, region_count: int) -> None:
    assert report.valid == (not report.violations)
    for violation in report.violations:
        assert violation.field
        assert violation.reason.isupper()
        assert violation.description
    assert report.summary.regions == region_count
    assert None not in (report.summary.targets, report.summary.encrypted, report.summary.depth)


def _obeys_the_contract(original: Construction, replacement: Construction) -> Outcome:
    found = compare(original, replacement)
    assert (found.outcome is Outcome.REPLACE) == (found.changed is not None)
    refused = found.outcome in (Outcome.REJECT, Outcome.UNCHANGED)
    assert refused == bool(found.violations)
    paths = {path for path, _ in walk(replacement)} | {path for path, _ in walk(original)}
    assert found.outcome.value == outcome(original, replacement)[0]
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


def _with_secrets(construction: Construction, key: str, pem: str) -> Construction:
    return _each_region(
        construction,
        lambda region: replace(
            region,
            options=replace(
                region.options, key=Secret(key), cert_pem=pem, key_pem=pem, root_cert_pem=pem
            ),
        ),
    )


def _with_generation_zero(construction: Construction) -> Construction:
    return _each_region(construction, lambda region: replace(region, generation=0))


def _each_region(
    construction: Construction, changed: Callable[[RegionSpec], RegionSpec]
) -> Construction:
    match construction:
        case RegionSpec():
            return changed(construction)
        case VolumeSpec(sub_volumes=subs, read_only_parent=parent):
            return replace(
                construction,
                sub_volumes=tuple(_each_region(sub, changed) for sub in subs),
                read_only_parent=None if parent is None else _each_region(parent, changed),
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
