"""What the judge said, as text and exit code."""

import pytest

from controlplane.cli import verdict
from controlplane.cli.failure import nowhere
from stairwell.controlplane.v1 import vcr_service_pb2 as pb

OUTCOME = pb.VcrOutcome


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (OUTCOME.VCR_OUTCOME_REPLACE, 0),
        (OUTCOME.VCR_OUTCOME_GENERATION_ONLY, 3),
        (OUTCOME.VCR_OUTCOME_UNCHANGED, 4),
        (OUTCOME.VCR_OUTCOME_REJECT, 1),
        (OUTCOME.VCR_OUTCOME_UNSPECIFIED, 1),
        (77, 1),
    ],
)
def test_exit_codes(outcome, code):
    assert verdict.exit_code(outcome) == code


def test_a_replacement_names_slot_and_targets():
    response = pb.CompareVcrsResponse(outcome=OUTCOME.VCR_OUTCOME_REPLACE)
    response.changed.path = "sub_volumes[0].opts.target[2]"
    response.changed.slot, response.changed.old, response.changed.new = 2, "a:1", "b:2"
    text = verdict.diff_view(response, nowhere)
    assert text == "replace: sub_volumes[0].opts.target[2] (slot 2) a:1 -> b:2"


def test_a_rejection_lists_all_violations():
    response = pb.CompareVcrsResponse(outcome=OUTCOME.VCR_OUTCOME_REJECT)
    response.violations.add(field="sub_volumes[0].gen", reason="GEN_LOWERED", description="raise")
    response.violations.add(field="block_size", reason="CHANGED", description="keep")
    lines = verdict.diff_view(response, lambda field: f"new.json:{len(field)}").splitlines()
    assert lines[0].startswith("reject: ")
    assert lines[1] == "  sub_volumes[0].gen [new.json:18]: raise (GEN_LOWERED)"
    assert len(lines) == 3


def test_checks():
    good = pb.CheckVcrResponse(valid=True)
    good.summary.total_bytes, good.summary.block_size = 8 << 30, 4096
    good.summary.regions, good.summary.targets = 1, 3
    text = verdict.check_view("x.json", good, nowhere)
    assert text.startswith("x.json: valid; 8 GiB in blocks of 4096 bytes, 1 region(s) on 3")
    bad = pb.CheckVcrResponse()
    bad.violations.add(field="type", reason="UNKNOWN", description="volume or region")
    assert "type: volume or region (UNKNOWN)" in verdict.check_view("x.json", bad, nowhere)


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (OUTCOME.VCR_OUTCOME_GENERATION_ONLY, "generation_only"),
        (OUTCOME.VCR_OUTCOME_UNCHANGED, "unchanged"),
    ],
)
def test_the_other_outcomes(outcome, word):
    response = pb.CompareVcrsResponse(outcome=outcome)
    assert verdict.diff_view(response, nowhere).startswith(f"{word}: ")


def test_numbers_as_in_the_tree_and_what_is_not_listed():
    response = pb.CompareVcrsResponse(outcome=OUTCOME.VCR_OUTCOME_REJECT, violations_omitted=7)
    response.violations.add(field="gen", reason="GENERATION_LOWERED", description="raise")
    lines = verdict.diff_view(response, nowhere, numbered=True).splitlines()
    assert lines[1:] == [
        "  [1] gen: raise (GENERATION_LOWERED)",
        "  and 7 more that are not listed",
    ]
    bad = pb.CheckVcrResponse(violations_omitted=2)
    bad.violations.add(field="gen", reason="GENERATION_ZERO", description="raise")
    lines = verdict.check_view("x.json", bad, nowhere).splitlines()
    assert (lines[0], lines[-1]) == (
        "x.json: not valid, 3 problems",
        "  and 2 more that are not listed",
    )


def test_a_dropped_parent_alone_says_why_nothing_is_to_do():
    response = pb.CompareVcrsResponse(outcome=OUTCOME.VCR_OUTCOME_UNCHANGED)
    response.violations.add(field="read_only_parent", reason="NO_DIFFERENCE", description="is gone")
    assert "read_only_parent: is gone" in verdict.diff_view(response, nowhere)
