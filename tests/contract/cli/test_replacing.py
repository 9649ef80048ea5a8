"""Replacements: sent, followed, sent again, refused, judged, traced."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from controlplane.cli import session as sessions
from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    UnavailableError,
)
from stairwell.controlplane.v1 import (
    disk_service_pb2 as disk_pb,
)
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import vcr_service_pb2 as vcr_pb

EXAMPLES = Path(__file__).parents[3] / "examples"
DISKS = str(EXAMPLES / "crucible-disks.json")
REPLACE = str(EXAMPLES / "replace.json")
VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
STATE = replacement_pb.ReplacementState
RESULT = disk_pb.ReplaceResult


def replacement(state: str, done: int = 0, **more) -> replacement_pb.Replacement:
    return replacement_pb.Replacement(
        id="r-1",
        disk="block2",
        slot=2,
        old_target="127.0.0.1:8830",
        new_target="127.0.0.1:8840",
        state=STATE.Value(f"REPLACEMENT_STATE_{state}"),
        bytes_done=done,
        bytes_total=100 << 20,
        **more,
    )


def watched(*states: replacement_pb.Replacement) -> list[replacement_pb.WatchReplacementResponse]:
    return [replacement_pb.WatchReplacementResponse(replacement=one) for one in states]


def answered(result: str) -> disk_pb.ReplaceVcrResponse:
    return disk_pb.ReplaceVcrResponse(
        result=RESULT.Value(f"REPLACE_RESULT_{result}"),
        slot=2,
        old_target="127.0.0.1:8830",
        new_target="127.0.0.1:8840",
        path="sub_volumes[0].opts.target[2]",
        replacement_id="r-1",
        trace_id="ab" * 16,
    )


def test_the_documents_command_is_followed_until_done(plane, client):
    plane.answers["ReplaceVcr"] = answered("STARTED")
    plane.answers["WatchReplacement"] = [
        *watched(
            replacement("PREFLIGHT"),
            replacement("REPAIR", 50 << 20, bytes_per_second=20 << 20, eta_seconds=2.5),
            replacement("REPAIR", 99 << 20, blocked_on="vmmd"),
            replacement("DONE", 100 << 20, bytes_copied=7 << 20),
        ),
        plane.hang,
    ]
    code, out, err = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("started: slot 2 127.0.0.1:8830 -> 127.0.0.1:8840")
    assert "50 %  50 MiB of 100 MiB" in out
    assert "20 MiB/s  ETA 2.5 s" in out
    assert "waits: vmmd" in out
    assert "now 127.0.0.1:8840, verified; 7 MiB copied" in lines[-2]
    (request,) = plane.requests("ReplaceVcr")
    assert (request.name, request.id) == ("block2", VOLUME)
    assert request.vcr.sub_volumes[0].gen == 2
    assert not request.validate_only


@pytest.mark.parametrize("option", ["-u", "-d", "--disk"])
def test_a_disk_name_works_as_well(plane, client, option):
    plane.answers["ReplaceVcr"] = answered("STARTED")
    assert client("vcr", option, "block2", "--vcr-replace", REPLACE, "--no-wait")[0] == 0
    (request,) = plane.requests("ReplaceVcr")
    assert request.name == "block2"
    assert not request.HasField("id")
    assert plane.requests("WatchReplacement") == []


def test_another_disks_name_is_refused_before_anything_is_sent(plane, client):
    code, _, err = client("vcr", "-u", "block3", "--vcr-replace", REPLACE)
    assert code == 1
    assert "-u names the disk 'block3' but" in err
    assert "is for 'block2'" in err
    assert plane.asked == []


def test_sent_again_while_it_runs(plane, client):
    plane.answers["ReplaceVcr"] = answered("STARTED_ALREADY")
    plane.answers["WatchReplacement"] = watched(replacement("DONE", 100 << 20))
    code, out, _ = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert code == 0
    assert out.startswith("started_already: ")


def test_sent_again_after_it(plane, client):
    plane.answers["ReplaceVcr"] = answered("COMPLETED_ALREADY")
    plane.answers["WatchReplacement"] = watched(replacement("DONE", 100 << 20))
    code, out, _ = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert code == 0
    assert out.startswith("completed_already: ")
    assert plane.requests("WatchReplacement") == []


def test_json_is_one_document_at_the_end(plane, client):
    plane.answers["ReplaceVcr"] = answered("STARTED")
    plane.answers["WatchReplacement"] = watched(
        replacement("REPAIR", 5), replacement("DONE", 100 << 20)
    )
    data = client.json("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert data["result"] == "started"
    assert data["replacement"]["state"] == "done"
    assert data["trace_id"] == "ab" * 16


def test_a_replacement_that_fails_is_exit_1_and_says_what_to_do(plane, client):
    plane.answers["ReplaceVcr"] = answered("STARTED")
    plane.answers["WatchReplacement"] = watched(
        replacement("REPAIR", 5), replacement("FAILED", 5, last_error="the target is full")
    )
    code, _, err = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert code == 1
    assert "replacement r-1 failed: the target is full" in err
    assert "stairwell replacement retry r-1" in err


def test_a_rejected_request_lists_each_field_with_its_line(plane, client):
    plane.answers["ReplaceVcr"] = InvalidRequestError(
        "the request changes more than one target",
        (
            FieldViolation("sub_volumes[0].opts.target[1]", "leave it", "TARGETS_CHANGED"),
            FieldViolation("sub_volumes[0].gen", "raise it above 2", "GENERATION_LOWERED"),
        ),
        reason="VCR_REJECTED",
    )
    code, out, err = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert (code, out) == (1, "")
    assert "error: the request changes more than one target (VCR_REJECTED)" in err
    assert "sub_volumes[0].opts.target[1] [replace.json:26]: leave it (TARGETS_CHANGED)" in err
    assert "sub_volumes[0].gen [replace.json:14]: raise it above 2" in err


def test_validate_only_changes_nothing(plane, client):
    plane.answers["ReplaceVcr"] = answered("STARTED")
    code, out, _ = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE, "--validate-only")
    assert code == 0
    assert "nothing was changed" in out
    assert plane.requests("ReplaceVcr")[0].validate_only
    assert plane.requests("WatchReplacement") == []


def test_a_watch_goes_on_after_the_control_plane_restarted(plane, client, monkeypatch):
    monkeypatch.setattr(sessions, "RECONNECT_DELAY_FIRST", 0.01)
    plane.answers["ReplaceVcr"] = answered("STARTED")
    plane.answers["WatchReplacement"] = [
        [*watched(replacement("REPAIR", 5)), UnavailableError("shutting down")],
        watched(replacement("DONE", 100 << 20)),
    ]
    code, _, err = client("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert code == 0
    assert err.count("trying again") == 1


def test_judging_files(plane, client):
    plane.answers["CheckVcr"] = vcr_pb.CheckVcrResponse(valid=True)
    assert client("vcr", "check", REPLACE)[0] == 0
    assert plane.requests("CheckVcr")[0].vcr.id == VOLUME
    outcomes = {"REPLACE": 0, "GENERATION_ONLY": 3, "UNCHANGED": 4, "REJECT": 1}
    for name, code in outcomes.items():
        plane.answers["CompareVcrs"] = vcr_pb.CompareVcrsResponse(
            outcome=vcr_pb.VcrOutcome.Value(f"VCR_OUTCOME_{name}")
        )
        assert client("vcr", "diff", DISKS, REPLACE)[0] == code
    request = plane.requests("CompareVcrs")[0]
    assert [one.sub_volumes[0].gen for one in (request.original, request.replacement)] == [1, 2]


def test_replacements(plane, client):
    one = replacement("FAILED", last_error="full", trace_id="cd" * 16)
    plane.answers["ListReplacements"] = replacement_pb.ListReplacementsResponse(replacements=[one])
    plane.answers["GetReplacement"] = replacement_pb.GetReplacementResponse(replacement=one)
    plane.answers["RetryReplacement"] = replacement_pb.RetryReplacementResponse(
        replacement=replacement("REPAIR")
    )
    assert client.json("replacement", "list", "-d", "block2")["replacements"][0]["id"] == "r-1"
    assert plane.requests("ListReplacements")[0].disk == "block2"
    assert "full" in client("replacement", "get", "r-1")[1]
    assert "goes on in repair" in client("replacement", "retry", "r-1")[1]


def test_repair_limits(plane, client):
    plane.answers["SetRepairLimits"] = replacement_pb.SetRepairLimitsResponse(
        replacement=replacement("REPAIR"), limits={"bytes_per_second_max": 50 << 20}, told=True
    )
    one = str(uuid.uuid4())
    said = client("replacement", "limit", one, "--rate", "50M", "--in-flight", "2")[1]
    assert "50 MiB/s" in said
    assert "does not answer" not in said
    asked = plane.requests("SetRepairLimits")[0]
    assert (asked.id, asked.disk) == (one, "")
    assert (asked.bytes_per_second_max, asked.extents_in_flight_max) == (50 << 20, 2)
    assert not asked.HasField("adaptive"), "what was not said is not changed"
    plane.answers["SetRepairLimits"] = replacement_pb.SetRepairLimitsResponse(
        limits={"adaptive": False}
    )
    said = client("replacement", "limit", "block2", "--rate", "0", "--adaptive", "off")[1]
    assert "no limit, not adaptive" in said
    assert "does not answer" in said
    asked = plane.requests("SetRepairLimits")[1]
    assert (asked.id, asked.disk) == ("", "block2")
    assert asked.HasField("bytes_per_second_max")
    assert not asked.bytes_per_second_max
    assert asked.HasField("adaptive")
    assert not asked.adaptive
    code, _, err = client("replacement", "limit", "block2", "--rate", "fast")
    assert code == 1
    assert "--rate: 'fast' is not a size" in err
    code, _, err = client("replacement", "limit", "block2")
    assert code == 1
    assert "nothing to change" in err


def test_pausing_and_resuming(plane, client):
    plane.answers["PauseReplacement"] = replacement_pb.PauseReplacementResponse(
        replacement=replacement("PAUSED", paused_in=STATE.REPLACEMENT_STATE_REPAIR)
    )
    plane.answers["ResumeReplacement"] = replacement_pb.ResumeReplacementResponse(
        replacement=replacement("REPAIR")
    )
    out = client("replacement", "pause", "r-1")[1]
    assert "r-1 is paused in repair" in out
    assert "stairwell replacement resume r-1" in out
    assert client.json("replacement", "pause", "r-1")["paused_in"] == "repair"
    assert "goes on in repair" in client("replacement", "resume", "r-1")[1]
    assert plane.requests("ResumeReplacement")[0].id == "r-1"


@pytest.mark.parametrize(
    ("outcome", "state", "words", "status"),
    [
        ("UNDONE", "CANCELLED", ["undone: because"], 0),
        ("FINISHED_FORWARD", "VERIFY", ["finished forward: because", "watch r-1"], 1),
        ("REPLACE_AGAIN", "FAILED", ["not undone, stopped: because", "retry r-1"], 1),
        ("PENDING", "CANCELLING", ["not known yet: because", "watch r-1"], 1),
    ],
)
def test_cancelling_says_what_becomes_of_it(plane, client, outcome, state, words, status):
    answer = replacement_pb.CancelReplacementResponse(
        replacement=replacement(state),
        outcome=replacement_pb.CancelOutcome.Value(f"CANCEL_OUTCOME_{outcome}"),
        reason="because",
    )
    plane.answers["CancelReplacement"] = answer
    code, out, _ = client("replacement", "cancel", "r-1")
    assert code == status
    for each in words:
        assert each in out
    code, out, _ = client("--output", "json", "replacement", "cancel", "r-1")
    assert code == status
    found = json.loads(out)
    assert (found["outcome"], found["reason"]) == (outcome.lower(), "because")
    assert found["replacement"]["state"] == state.lower()


def test_what_it_waits_for_and_since_when(plane, client):
    one = replacement("REPAIR", blocked_on="vmmd is away", restarts=2, mended=1)
    one.blocked_since_time.FromSeconds(1_700_000_000)
    plane.answers["GetReplacement"] = replacement_pb.GetReplacementResponse(replacement=one)
    out = client("replacement", "show", "r-1")[1]
    for words in ("vmmd is away", "2023-11-14 22:13:20Z", "begun anew", "2 times", "filled again"):
        assert words in out
    failed = replacement("FAILED", failed_in=STATE.REPLACEMENT_STATE_VERIFY, last_error="differ")
    plane.answers["GetReplacement"] = replacement_pb.GetReplacementResponse(replacement=failed)
    assert "verify" in client("replacement", "show", "r-1")[1]


def test_one_that_is_undone_while_it_is_followed(plane, client):
    plane.answers["WatchReplacement"] = watched(replacement("REPAIR", 5), replacement("CANCELLED"))
    code, out, err = client("replacement", "watch", "r-1")
    assert code == 1
    assert "replacement r-1 was undone: slot 2 of block2 stays 127.0.0.1:8830" in err
    assert "retry" not in out + err


def test_watching_a_replacement_as_json_lines(plane, client):
    plane.answers["WatchReplacement"] = watched(replacement("REPAIR", 5), replacement("FAILED", 5))
    code, out, _ = client("replacement", "watch", "r-1", "--output", "json")
    assert code == 1
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["repair", "failed"]


def test_a_trace_by_name_and_the_newest(plane, client):
    spans = [
        {"span_id": "a", "name": "replace", "service": "controlplane", "end_time_unix_nano": 9},
        {"span_id": "b", "name": "copy", "service": "downstairs", "parent_span_id": "a"},
    ]
    plane.answers["GetReplacementTrace"] = replacement_pb.GetReplacementTraceResponse(
        trace_id="cd" * 16, spans=spans
    )
    old, new = replacement("DONE"), replacement("DONE")
    old.id, new.id = "r-old", "r-new"
    new.create_time.FromSeconds(9)
    plane.answers["ListReplacements"] = replacement_pb.ListReplacementsResponse(
        replacements=[new, old]
    )
    code, out, _ = client("trace", "r-1")
    assert code == 0
    assert "services: " in out
    data = client.json("trace")
    assert data["services"] == ["controlplane", "downstairs"]
    assert [one.id for one in plane.requests("GetReplacementTrace")] == ["r-1", "r-new"]


def test_a_trace_as_a_file_for_a_collector(plane, client, tmp_path):
    ids = {"trace_id": "cd" * 16, "span_id": "ab" * 8, "start_time_unix_nano": 1}
    spans = [
        {**ids, "name": "apply", "service": "controlplane", "end_time_unix_nano": 9},
        {**ids, "name": "repair", "service": "controlplane", "span_id": "ef" * 8},
    ]
    plane.answers["GetReplacementTrace"] = replacement_pb.GetReplacementTraceResponse(
        trace_id="cd" * 16, spans=spans
    )
    as_json, as_bytes = tmp_path / "t.json", tmp_path / "t.binpb"
    code, out, _ = client("trace", "r-1", "--otlp", str(as_json))
    assert (code, out) == (0, f"{as_json}: 1 spans of trace {'cd' * 16}\n")
    (span,) = json.loads(as_json.read_text())["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (span["traceId"], span["name"]) == ("cd" * 16, "apply")
    assert client.json("trace", "r-1", "--otlp", str(as_bytes))["spans"] == 1
    data = TracesData.FromString(as_bytes.read_bytes())
    assert data.resource_spans[0].scope_spans[0].spans[0].trace_id.hex() == "cd" * 16


def test_a_file_that_cannot_be_written_or_says_no_format_is_said(plane, client, tmp_path):
    code, _, err = client("trace", "r-1", "--otlp", str(tmp_path / "t.txt"))
    assert code == 1
    assert "says no format" in err
    assert ".jsonl" in err
    assert plane.requests("GetReplacementTrace") == [], "nothing is asked before"
    plane.answers["GetReplacementTrace"] = replacement_pb.GetReplacementTraceResponse()
    code, _, err = client("trace", "r-1", "--otlp", str(tmp_path / "no" / "t.json"))
    assert code == 1
    assert "cannot be written: No such file" in err


def test_a_watch_that_was_cut_goes_on_after_the_last_transition_it_saw(plane, client):
    first, last = replacement("REPAIR", 5), replacement("DONE")
    for number in range(3):
        first.transitions.add(number=number)
    plane.answers["WatchReplacement"] = [watched(first), watched(last)]
    assert client("replacement", "watch", "r-1")[0] == 0
    asked = plane.requests("WatchReplacement")
    assert [one.HasField("after_transition") for one in asked] == [False, True]
    assert asked[1].after_transition == 2
