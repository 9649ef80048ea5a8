"""When the demo counts as right, and what it writes down."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from controlplane.cli.demo.result import Replaced, Result, summary
from controlplane.cli.demo.steps import all_equal, all_right
from stairwell.vmmd.v1.guest_service_pb2 import WorkloadReport
from stairwell.vmmd.v1.volume_service_pb2 import VerifyReport

MIB = 1 << 20
GOOD = Result(
    bytes_written=600 * MIB,
    guest_ios=12345,
    guest_errors=0,
    replaced=Replaced(2, "a:3", "a:4"),
    repair_bytes=500 * MIB,
    repair_seconds=4.00049,
    replicas_equal=True,
    read_back_equal=True,
    trace_id="ab" * 16,
    trace_services=("controlplane", "vmmd", "machine", "downstairs"),
    guest_p99_before_ms=1.23456,
    guest_p99_during_ms=7.0,
)


def test_the_json_has_exactly_the_documented_keys():
    assert GOOD.data() == {
        "bytes_written": 600 * MIB,
        "guest_ios": 12345,
        "guest_errors": 0,
        "replaced": {"slot": 2, "old": "a:3", "new": "a:4"},
        "repair_bytes": 500 * MIB,
        "repair_seconds": 4.0,
        "replicas_equal": True,
        "read_back_equal": True,
        "trace_id": "ab" * 16,
        "trace_services": ["controlplane", "vmmd", "machine", "downstairs"],
        "guest_p99_before_ms": 1.235,
        "guest_p99_during_ms": 7.0,
    }


def test_all_right():
    assert GOOD.failures(512 * MIB) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bytes_written": 511 * MIB}, "wrote 511 MiB where 512 MiB"),
        ({"guest_errors": 1}, "1 failed or wrong"),
        ({"repair_bytes": 0}, "copied nothing"),
        ({"replicas_equal": False}, "do not agree"),
        ({"read_back_equal": False}, "from the new member alone"),
        ({"trace_services": ("controlplane",)}, "reached 1 services"),
        ({"trace_id": ""}, "the trace"),
    ],
)
def test_anything_missing_is_a_failure(change, said):
    (text,) = replace(GOOD, **change).failures(512 * MIB)
    assert said in text


def test_the_summary_names_what_is_wrong():
    console = Console(file=StringIO(), width=120)
    console.print(summary(replace(GOOD, replicas_equal=False)))
    text = console.file.getvalue()
    assert "slot 2: a:3 -> a:4" in text
    assert "125 MiB/s" in text
    assert "NO" in text


def verify(**changes) -> VerifyReport:
    values = {
        "equal": True,
        "extents_compared": 128,
        "members_compared": 3,
        "blocks_read": 1000,
    }
    return VerifyReport(**{**values, **changes})


def test_replicas_count_as_equal_only_when_all_was_compared():
    assert all_equal(verify())
    for change in (
        {"equal": False},
        {"extents_compared": 127},
        {"members_compared": 2},
        {"blocks_read": 0},
        {"bad_blocks": 1},
    ):
        assert not all_equal(verify(**change)), change


def test_reading_back_counts_only_when_whole_and_faultless():
    fill = WorkloadReport(bytes_written=10)
    assert all_right(WorkloadReport(finished=True, bytes_read=10), fill)
    for change in (
        {"finished": False},
        {"bytes_read": 9},
        {"mismatches": 1},
        {"errors": 1},
    ):
        report = WorkloadReport(**{"finished": True, "bytes_read": 10, **change})
        assert not all_right(report, fill), change
    assert not all_right(WorkloadReport(finished=True), WorkloadReport())
