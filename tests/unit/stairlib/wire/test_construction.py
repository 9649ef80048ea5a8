"""Reading and writing construction requests: what is accepted, and how the rest is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from stairlib.model.construction import (
    DEPTH_MAX,
    NODES_MAX,
    FileSpec,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
    as_f32,
)
from stairlib.model.errors import InvalidRequestError
from stairlib.model.violations import VIOLATIONS_MAX
from stairlib.wire.construction import (
    JSON_BYTES_MAX,
    REDACTED,
    from_json,
    from_message,
    from_object,
    parse_json,
    parse_message,
    parse_object,
    to_json,
    to_message,
    to_object,
)
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest

EXAMPLES = Path(__file__).parents[4] / "examples"
ID = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


def options(**changes: Any) -> dict[str, Any]:
    made = {
        "id": ID,
        "target": ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"],
        "lossy": False,
        "read_only": False,
    }
    return made | changes


def region(**changes: Any) -> dict[str, Any]:
    made = {
        "type": "region",
        "block_size": 4096,
        "blocks_per_extent": 16,
        "extent_count": 8,
        "gen": 1,
        "opts": options(),
    }
    return made | changes


def volume(*subs: Any, **changes: Any) -> dict[str, Any]:
    made = {"type": "volume", "id": ID, "block_size": 4096, "sub_volumes": list(subs)}
    return made | changes


def problems(value: Any) -> dict[str, str]:
    """Field path to reason of what is wrong with decoded JSON."""
    return {v.field: v.reason for v in parse_object(value).violations}


def test_the_documents_examples_are_read_and_written_back_unchanged() -> None:
    disks = json.loads((EXAMPLES / "crucible-disks.json").read_text())
    replacement = json.loads((EXAMPLES / "replace.json").read_text())
    for value in (disks[0]["volume_construction_request"], replacement["vcr"]):
        construction = from_object(value)
        assert to_object(construction) == value
        assert from_message(to_message(construction)) == construction
        assert from_json(to_json(construction, indent=2)) == construction


def test_all_variants() -> None:
    tree = volume(
        region(),
        volume({"type": "file", "id": ID, "block_size": 4096, "path": "/image"}),
        read_only_parent=volume(
            read_only_parent={"type": "url", "id": ID, "block_size": 4096, "url": "http://h/i"}
        ),
    )
    made = from_object(tree)
    assert isinstance(made, VolumeSpec)
    assert isinstance(made.sub_volumes[0], RegionSpec)
    assert isinstance(made.sub_volumes[1], VolumeSpec)
    assert isinstance(made.sub_volumes[1].sub_volumes[0], FileSpec)
    assert isinstance(made.read_only_parent, VolumeSpec)
    assert isinstance(made.read_only_parent.read_only_parent, UrlSpec)
    assert from_message(to_message(made)) == from_json(to_json(made)) == made


@pytest.mark.parametrize("name", ["flush_timeout", "key", "cert_pem", "key_pem", "control"])
def test_null_and_left_out_are_the_same(name: str) -> None:
    assert from_object(region(opts=options(**{name: None}))) == from_object(region())


def test_null_for_a_field_of_another_type_is_no_field() -> None:
    assert from_object(region(url=None, sub_volumes=None)) == from_object(region())


@pytest.mark.parametrize(
    "spelling", [ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}"]
)
def test_uuid_spellings_are_one_value(spelling: str) -> None:
    assert from_object(volume(id=spelling)) == from_object(volume())


@pytest.mark.parametrize("name", ["type", "block_size", "blocks_per_extent", "extent_count", "gen"])
@pytest.mark.parametrize("how", ["missing", "null"])
def test_required_fields_of_a_region(name: str, how: str) -> None:
    value = region(**{name: None})
    if how == "missing":
        del value[name]
    violation = parse_object(value).violations[0]
    assert (violation.field, violation.reason) == (name, "REQUIRED")
    assert violation.description.startswith(f"is {how}; must be")


@pytest.mark.parametrize("name", ["id", "target", "lossy", "read_only"])
def test_required_options(name: str) -> None:
    value = options()
    del value[name]
    assert problems(region(opts=value)) == {f"opts.{name}": "REQUIRED"}
    assert problems(region(opts=value | {name: None})) == {f"opts.{name}": "REQUIRED"}


@pytest.mark.parametrize("name", ["type", "id", "block_size", "sub_volumes"])
def test_required_fields_of_a_volume(name: str) -> None:
    value = volume(region())
    del value[name]
    assert problems(value) == {name: "REQUIRED"}


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ([], "", "WRONG_TYPE"),
        (None, "", "WRONG_TYPE"),
        ("volume", "", "WRONG_TYPE"),
        (region(type="disk"), "type", "UNKNOWN_TYPE"),
        (region(type=""), "type", "UNKNOWN_TYPE"),
        (region(type=3), "type", "WRONG_TYPE"),
        (region(type=["volume"]), "type", "WRONG_TYPE"),
        (region(block_size="4096"), "block_size", "WRONG_TYPE"),
        (region(block_size=4096.0), "block_size", "WRONG_TYPE"),
        (region(block_size=True), "block_size", "WRONG_TYPE"),
        (region(gen=-1), "gen", "OUT_OF_RANGE"),
        (region(gen=1 << 64), "gen", "OUT_OF_RANGE"),
        (region(extent_count=1 << 32), "extent_count", "OUT_OF_RANGE"),
        (region(opts=None), "opts", "REQUIRED"),
        (region(opts=[]), "opts", "WRONG_TYPE"),
        (volume(id=7), "id", "INVALID_UUID"),
        (volume(id="0cedae45"), "id", "INVALID_UUID"),
        (volume(id=ID.replace("0c", "0_")), "id", "INVALID_UUID"),
        (volume(sub_volumes={}), "sub_volumes", "WRONG_TYPE"),
        (volume(7), "sub_volumes[0]", "WRONG_TYPE"),
        (volume(None), "sub_volumes[0]", "WRONG_TYPE"),
        (volume(read_only_parent="x"), "read_only_parent", "WRONG_TYPE"),
        (region(opts=options(target="a:1")), "opts.target", "WRONG_TYPE"),
        (region(opts=options(target=["a:1", 2])), "opts.target[1]", "WRONG_TYPE"),
        (region(opts=options(target=["a:1", "b"])), "opts.target[1]", "INVALID_ADDRESS"),
        (region(opts=options(lossy=0)), "opts.lossy", "WRONG_TYPE"),
        (region(opts=options(read_only="no")), "opts.read_only", "WRONG_TYPE"),
        (region(opts=options(flush_timeout="1")), "opts.flush_timeout", "WRONG_TYPE"),
        (region(opts=options(flush_timeout=0)), "opts.flush_timeout", "OUT_OF_RANGE"),
        (region(opts=options(key="")), "opts.key", "EMPTY"),
        (region(opts=options(flush_timeout=True)), "opts.flush_timeout", "WRONG_TYPE"),
        (region(opts=options(flush_timeout=1e39)), "opts.flush_timeout", "OUT_OF_RANGE"),
        (region(opts=options(flush_timeout=10**400)), "opts.flush_timeout", "OUT_OF_RANGE"),
        (region(opts=options(control="nowhere")), "opts.control", "INVALID_ADDRESS"),
        (region(opts=options(control=7777)), "opts.control", "WRONG_TYPE"),
        (region(opts=options(key=7)), "opts.key", "WRONG_TYPE"),
        (region(opts=options(cert_pem="\ud800")), "opts.cert_pem", "INVALID_TEXT"),
        (region(generation=1), "generation", "UNKNOWN_FIELD"),
        (region(path="/a"), "path", "UNKNOWN_FIELD"),
        (region(opts=options(targets=[])), "opts.targets", "UNKNOWN_FIELD"),
        (volume(**{"odd key": 1}), '["odd key"]', "UNKNOWN_FIELD"),
    ],
)
def test_what_is_wrong_is_named(value: Any, field: str, reason: str) -> None:
    assert problems(value) == {field: reason}


def test_an_unknown_field_gets_a_hint() -> None:
    violation = parse_object(region(generation=1)).violations[0]
    assert violation.description == 'is not a field of a region; did you mean "gen"?'


def test_all_problems_at_once_with_their_paths() -> None:
    bad = region(gen="1", opts=options(target=["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1"]))
    tree = volume(bad, region(extra=1), read_only_parent=volume(bad, id="?"))
    with pytest.raises(InvalidRequestError) as caught:
        from_object(tree, path="vcr")
    assert [v.field for v in caught.value.violations] == [
        "vcr.sub_volumes[0].gen",
        "vcr.sub_volumes[0].opts.target[2]",
        "vcr.sub_volumes[1].extra",
        "vcr.read_only_parent.id",
        "vcr.read_only_parent.sub_volumes[0].gen",
        "vcr.read_only_parent.sub_volumes[0].opts.target[2]",
    ]
    assert "vcr.sub_volumes[0].gen must be a whole number" in caught.value.message
    assert "5 more" in caught.value.message


def test_violations_are_listed_up_to_a_bound_and_then_counted() -> None:
    parsed = parse_object(volume(**{f"key{n}": n for n in range(10_000)}))
    assert len(parsed.violations) == VIOLATIONS_MAX
    assert parsed.omitted == 10_000 - VIOLATIONS_MAX
    with pytest.raises(InvalidRequestError, match=f"and {10_000 - 1} more") as caught:
        parsed.require()
    assert caught.value.metadata == {"violations_omitted": str(10_000 - VIOLATIONS_MAX)}
    assert all(v.field.startswith("key") for v in parsed.violations)


def test_what_can_be_read_is_a_draft_with_everything_in_its_place() -> None:
    bad = region(gen="1", opts=options(target=["127.0.0.1:1", "nowhere", "127.0.0.1:3"]))
    parsed = parse_object(volume({"type": "disk"}, bad, region()))
    assert parsed.construction is None
    assert isinstance(parsed.draft, VolumeSpec)
    assert parsed.unread == {
        "sub_volumes[0]",
        "sub_volumes[0].type",
        "sub_volumes[1].gen",
        "sub_volumes[1].opts.target[1]",
    }
    second, third = parsed.draft.sub_volumes[1:]
    assert isinstance(second, RegionSpec)
    assert second.options.targets[0::2] == ("127.0.0.1:1", "127.0.0.1:3")
    assert second.options.targets[1].endswith(".invalid:1")
    assert third == from_object(region())


def test_nothing_of_a_root_that_cannot_be_read_is_a_draft() -> None:
    for value in (7, {"type": "disk"}, {}):
        parsed = parse_object(value)
        assert (parsed.construction, parsed.draft) == (None, None)
        assert parsed.violations


def test_of_far_too_many_targets_only_the_number_counts() -> None:
    parsed = parse_object(region(opts=options(target=[1] * 100_000)))
    assert parsed.violations[0].description == "has 100000 addresses, must have exactly 3"
    assert len(parsed.violations) < 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "INVALID_JSON"),
        ("{", "INVALID_JSON"),
        (b"\xff\xfe{", "INVALID_JSON"),
        ('{"gen": NaN}', "INVALID_JSON"),
        ('{"gen": 1' + "0" * 5000 + "}", "INVALID_JSON"),
        ("[" * 100_000, "TOO_DEEP"),
        (" " * (JSON_BYTES_MAX + 1), "TOO_LARGE"),
    ],
)
def test_text_that_is_no_json(text: str | bytes, reason: str) -> None:
    assert [v.reason for v in parse_json(text, path="vcr_json").violations] == [reason]
    with pytest.raises(InvalidRequestError, match="vcr_json"):
        from_json(text, path="vcr_json")


def test_a_key_written_twice() -> None:
    text = json.dumps(volume(region())).replace('"gen": 1', '"gen": 1, "gen": 2')
    violation = parse_json(text).violations[0]
    assert (violation.field, violation.reason) == ("sub_volumes[0].gen", "DUPLICATE_KEY")


def test_depth_has_a_limit_in_both_forms() -> None:
    value: dict[str, Any] = region()
    message = to_message(from_object(region()))
    for _ in range(DEPTH_MAX - 1):
        value = volume(read_only_parent=value)
        outer = VolumeConstructionRequest(type="volume", id=ID, block_size=4096)
        outer.read_only_parent.CopyFrom(message)
        message = outer
    assert from_object(value) == from_message(message)
    outer = VolumeConstructionRequest(type="volume", id=ID, block_size=4096)
    outer.read_only_parent.CopyFrom(message)
    path = ".".join(["read_only_parent"] * DEPTH_MAX)
    assert problems(volume(read_only_parent=value)) == {path: "TOO_DEEP"}
    assert [v.reason for v in parse_message(outer).violations] == ["TOO_DEEP"]


def test_nodes_have_a_limit() -> None:
    wide = volume(*[region()] * (NODES_MAX - 1))
    assert parse_object(wide).construction is not None
    wide["sub_volumes"] += [region()] * 1000
    assert problems(wide) == {f"sub_volumes[{NODES_MAX - 1}]": "TOO_MANY_NODES"}


def test_a_message_tells_the_same_problems() -> None:
    message = VolumeConstructionRequest(type="volume")
    sub = message.sub_volumes.add(type="region", block_size=4096, url="http://x")
    sub.opts.target.append("nowhere")
    assert {v.field: v.reason for v in parse_message(message).violations} == {
        "id": "REQUIRED",
        "block_size": "REQUIRED",
        "sub_volumes[0].url": "UNKNOWN_FIELD",
        "sub_volumes[0].blocks_per_extent": "REQUIRED",
        "sub_volumes[0].extent_count": "REQUIRED",
        "sub_volumes[0].gen": "REQUIRED",
        "sub_volumes[0].opts.id": "REQUIRED",
        "sub_volumes[0].opts.target[0]": "INVALID_ADDRESS",
        "sub_volumes[0].opts.lossy": "REQUIRED",
        "sub_volumes[0].opts.read_only": "REQUIRED",
    }
    empty = parse_message(VolumeConstructionRequest()).violations
    assert [(v.field, v.reason) for v in empty] == [("type", "REQUIRED")]


def test_seconds_survive_the_32_bits_of_the_wire() -> None:
    made = from_object(region(opts=options(flush_timeout=0.1)))
    assert isinstance(made, RegionSpec)
    assert made.options.flush_timeout == as_f32(0.1)
    assert from_message(to_message(made)) == from_json(to_json(made)) == made


def test_a_null_that_a_tool_sent_as_an_empty_message_is_a_null() -> None:
    plain = to_message(from_object(region()))
    sent = to_message(from_object(region()))
    sent.opts.key.SetInParent()
    sent.opts.control.SetInParent()
    sent.opts.flush_timeout.SetInParent()
    assert sent != plain
    assert from_message(sent) == from_message(plain)
    volume = VolumeConstructionRequest(type="volume", id=ID, block_size=4096, sub_volumes=[plain])
    same = from_message(volume)
    volume.read_only_parent.SetInParent()
    assert from_message(volume) == same


def test_secrets_go_out_only_when_asked_for() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nhush"
    made = from_object(region(opts=options(key=KEY, key_pem=pem, cert_pem="/cert.pem")))
    assert isinstance(made, RegionSpec)
    assert made.options.key == Secret(KEY)
    shown = to_message(made, secrets=False)
    assert shown.opts.key.value == shown.opts.key_pem.value == REDACTED
    assert shown.opts.cert_pem.value == "/cert.pem"
    text = to_json(made, secrets=False)
    assert KEY not in text
    assert "hush" not in text
    assert to_message(made).opts.key.value == KEY
    assert to_message(from_object(region()), secrets=False).opts.HasField("key") is False


def test_no_violation_repeats_a_secret() -> None:
    bad = region(opts=options(key=[KEY], key_pem={"a": KEY}, KEY=KEY, lossy=KEY))
    assert KEY not in repr(parse_object(bad).violations)
