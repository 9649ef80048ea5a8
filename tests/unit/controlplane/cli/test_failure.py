"""What users read when something is refused."""

from controlplane.cli.failure import CommandError, describe, peer_name
from stairlib.model.errors import (
    ConflictError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StateError,
    UnavailableError,
    UnsupportedError,
)

ADDRESS = "127.0.0.1:55400"


def test_every_violation_is_listed_with_its_place():
    error = InvalidRequestError(
        "the requests differ in two targets",
        (
            FieldViolation("sub_volumes[0].opts.target[1]", "leave it", "TARGET_CHANGED"),
            FieldViolation("sub_volumes[0].gen", "raise it"),
        ),
        reason="VCR_REJECTED",
    )
    places = {"sub_volumes[0].gen": "replace.json:14"}
    assert describe(error, ADDRESS, places.get).splitlines() == [
        "error: the requests differ in two targets (VCR_REJECTED)",
        "  sub_volumes[0].opts.target[1]: leave it (TARGET_CHANGED)",
        "  sub_volumes[0].gen [replace.json:14]: raise it",
    ]


def test_violations_are_told_once():
    error = InvalidRequestError(
        "not a replacement: a.b: is 1; c: is 2",
        (FieldViolation("a.b", "is 1", "ONE"), FieldViolation("c", "is 2", "TWO")),
        reason="ONE",
    )
    assert describe(error, ADDRESS).splitlines() == [
        "error: not a replacement (ONE)",
        "  a.b: is 1 (ONE)",
        "  c: is 2 (TWO)",
    ]


def test_a_control_plane_that_is_not_there_says_how_to_start_it():
    error = UnavailableError("cannot reach it", peer=peer_name(ADDRESS))
    assert f"controlplane run {ADDRESS}" in describe(error, ADDRESS)


def test_a_peer_of_the_control_plane_that_is_away_is_not_mistaken_for_it():
    error = UnavailableError("vmmd at v:1 is away", reason="VMMD_AWAY", peer="vmmd at v:1")
    text = describe(error, ADDRESS)
    assert "hint" not in text
    assert "vmmd at v:1 is away (VMMD_AWAY)" in text


def test_a_slow_answer_says_which_option_waits_longer():
    error = UnavailableError("no answer", reason="DEADLINE_EXCEEDED", peer=peer_name(ADDRESS))
    assert "--timeout" in describe(error, ADDRESS)


def test_hints_name_the_command_to_type():
    assert "stairwell list" in describe(NotFoundError("disk", "x"), ADDRESS)
    # What no list of disks shows.
    assert "hint" not in describe(NotFoundError("file", "/x"), ADDRESS)
    assert "replacement list" in describe(ConflictError("busy"), ADDRESS)
    assert "same version" in describe(UnsupportedError("no such method"), ADDRESS)
    assert "hint" not in describe(StateError("stopped; start it first"), ADDRESS)


def test_a_command_error_has_details_and_hint():
    error = CommandError("cannot", "do that", ("first", "second"))
    assert describe(error, ADDRESS) == "error: cannot\n  first\n  second\nhint: do that"


def test_a_thing_that_will_not_do_is_shown_where_it_was_named():
    field = "vcr.sub_volumes[0].opts.target[2]"
    error = StateError("the downstairs at h:1 is in use", reason="TARGET_IN_USE", field=field)
    lines = describe(error, "h:2", lambda path: "r.json:26" if path == field else None).splitlines()
    assert lines == [
        "error: the downstairs at h:1 is in use (TARGET_IN_USE)",
        f"  named in {field} [r.json:26]",
    ]


def test_violations_that_did_not_fit_are_counted():
    error = InvalidRequestError("bad", (FieldViolation("gen", "raise it"),), omitted=12)
    assert describe(error, ADDRESS).splitlines()[-1] == "  and 12 more"
