"""A replacement from the user's call to its end, against peers that answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.core.replacement import MENDS_MAX
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, VOLUME, House, house

GIB_8 = 8 << 30


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data") as found:
        await found.create_running()
        yield found


async def test_the_document_s_replacement_runs_to_its_end(home: House) -> None:
    answer = await home.replace(home.vcr())
    old, new = home.targets(2, 3)

    assert answer.result == disk_pb.REPLACE_RESULT_STARTED
    assert (answer.slot, answer.old_target, answer.new_target) == (2, old, new)
    assert answer.path == "sub_volumes[0].opts.target[2]"
    assert answer.trace_id == answer.replacement.trace_id != ""

    record = await home.wait_replacement(answer.replacement_id, "REPAIR")
    assert record.bytes_total == GIB_8
    await home.vmmd.progress("block2", 2, GIB_8 // 2, GIB_8)
    record = await home.wait_replacement(answer.replacement_id, lambda r: r.bytes_done > 0)
    assert record.bytes_done == GIB_8 // 2
    await home.vmmd.progress("block2", 2, GIB_8, GIB_8)
    record = await home.wait_replacement(answer.replacement_id, lambda r: r.bytes_done > GIB_8 // 2)
    assert record.bytes_done < GIB_8, "not verified yet"
    assert record.state == pb.REPLACEMENT_STATE_REPAIR
    await home.vmmd.finish("block2", 2)
    record = await home.wait_replacement(answer.replacement_id, "DONE")

    assert record.bytes_done == record.bytes_total == GIB_8
    assert record.extents_done == record.extents_total == 128
    assert not record.blocked_on
    assert not record.last_error
    reached = [pb.ReplacementState.Name(each.state)[18:] for each in record.transitions]
    assert reached == [
        "PREFLIGHT", "RECORD", "APPLY", "REPAIR", "VERIFY", "RETIRE", "DONE",
    ]  # fmt: skip
    assert home.vmmd.count("ReplaceVcr") == 1
    assert home.vmmd.count("VerifyVolume") == 1
    fleet = await home.fleet.ListDownstairs(fleet_pb.ListDownstairsRequest(), timeout=SECONDS)
    roles = {
        each.address: fleet_pb.DownstairsRole.Name(each.role)[16:] for each in fleet.downstairs
    }
    assert roles[old] == "RETIRED"
    assert roles[new] == "MEMBER"


async def test_the_same_request_again(home: House) -> None:
    first = await home.replace(home.vcr())
    again = await home.replace(home.vcr())
    assert again.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY
    assert again.replacement_id == first.replacement_id
    await home.wait_replacement(first.replacement_id, "REPAIR")
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(first.replacement_id, "DONE")
    late = await home.replace(home.vcr())
    assert late.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
    assert late.replacement_id == first.replacement_id
    assert home.vmmd.count("ReplaceVcr") == 1


async def test_two_at_once_are_one_replacement(home: House) -> None:
    answers = await asyncio.gather(*(home.replace(home.vcr()) for _ in range(4)))
    results = sorted(answer.result for answer in answers)
    assert results == [disk_pb.REPLACE_RESULT_STARTED] + 3 * [
        disk_pb.REPLACE_RESULT_STARTED_ALREADY
    ]
    assert len({answer.replacement_id for answer in answers}) == 1


async def test_a_generation_alone_is_recorded_and_nothing_is_replaced(home: House) -> None:
    answer = await home.replace(home.vcr(slots=(0, 1, 2), gen=7))
    assert answer.result == disk_pb.REPLACE_RESULT_VCR_MATCHES
    assert not answer.replacement_id
    disk = await home.disks.GetDisk(disk_pb.GetDiskRequest(name="block2"), timeout=SECONDS)
    assert disk.disk.recorded_generation == 7
    assert home.vmmd.count("ReplaceVcr") == 0


async def test_the_disk_by_volume_id_and_json_text(home: House) -> None:
    answer = await home.replace(id=VOLUME, vcrJson=json.dumps(home.vcr()))
    assert answer.result == disk_pb.REPLACE_RESULT_STARTED


async def test_judging_only_changes_nothing(home: House) -> None:
    before = home.state()
    answer = await home.replace(home.vcr(), validateOnly=True)
    assert answer.result == disk_pb.REPLACE_RESULT_STARTED
    assert (answer.slot, answer.new_target) == (2, home.members[3].address)
    assert not answer.replacement_id
    assert home.state() == before


async def test_a_request_id_is_answered_once(home: House) -> None:
    first = await home.replace(home.vcr(), requestId="r-1")
    again = await home.replace(home.vcr(), requestId="r-1")
    assert first == again
    assert again.result == disk_pb.REPLACE_RESULT_STARTED


async def test_the_trace_is_one_over_both_daemons(home: House) -> None:
    home.vmmd.quick = True
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "DONE")
    trace = await home.replacements.GetReplacementTrace(
        pb.GetReplacementTraceRequest(id=answer.replacement_id), timeout=SECONDS
    )
    assert trace.trace_id == answer.trace_id
    assert {span.trace_id for span in trace.spans} == {answer.trace_id}
    assert {span.service for span in trace.spans} == {"controlplane", "vmmd"}
    by_id = {span.span_id: span for span in trace.spans}
    names = {span.name for span in trace.spans}
    steps = ("validate", "preflight", "record", "apply", "repair", "verify", "retire")
    assert {f"replacement {step}" for step in steps} <= names
    root = by_id[next(s.span_id for s in trace.spans if s.name == "replacement")]
    assert root.parent_span_id == ""
    assert (root.status, root.attributes["state"]) == ("UNSET", "DONE")
    for span in trace.spans:
        if span.name.startswith("replacement"):
            assert span.parent_span_id == (root.span_id if span is not root else "")
            assert span.attributes["volume.id"] == VOLUME
            assert span.attributes["replacement.id"] == answer.replacement_id
            assert span.attributes["slot"] == "2"
            assert span.start_time_unix_nano < span.end_time_unix_nano
    applied = next(
        s
        for s in trace.spans
        if s.service == "vmmd" and s.name.endswith("VolumeService/ReplaceVcr")
    )
    client = by_id[applied.parent_span_id]
    assert by_id[client.parent_span_id].name == "replacement apply"
    by_trace_id = await home.replacements.GetReplacementTrace(
        pb.GetReplacementTraceRequest(id=answer.trace_id), timeout=SECONDS
    )
    assert {span.span_id for span in trace.spans} <= {s.span_id for s in by_trace_id.spans}


def differs(extent: int, *digests: int) -> volume_pb.VerifyReport:
    found = volume_pb.ExtentDifference(region_path="sub_volumes[0]", extent=extent, digests=digests)
    return volume_pb.VerifyReport(extents_compared=128, members_compared=3, differences=[found])


async def test_members_that_differ_are_filled_again_and_compared_again(home: House) -> None:
    home.vmmd.quick = True
    home.vmmd.reports.append(differs(17, 1, 1, 2))
    answer = await home.replace(home.vcr())
    record = await home.wait_replacement(answer.replacement_id, lambda r: r.mended == 1)
    assert "extent 17" in record.last_error
    assert record.bytes_done < record.bytes_total
    await home.vmmd.until(lambda: home.vmmd.count("RepairMember") == 1)
    ((_, asked),) = [call for call in home.vmmd.calls if call[0] == "RepairMember"]
    assert (asked.slot, asked.whole) == (2, True)
    assert "extent 17" in asked.reason
    await home.vmmd.finish("block2", 2)
    record = await home.wait_replacement(answer.replacement_id, "DONE")
    assert not record.last_error
    assert "Differed" in [each.event for each in record.transitions]
    assert home.vmmd.count("ReplaceVcr") == 1


async def test_another_member_that_differs_is_filled_before_the_next_comparison(
    home: House,
) -> None:
    home.vmmd.quick = True
    home.vmmd.reports.append(differs(17, 2, 1, 1))
    answer = await home.replace(home.vcr())
    record = await home.wait_replacement(answer.replacement_id, lambda r: "slot 0" in r.blocked_on)
    assert record.state == pb.REPLACEMENT_STATE_REPAIR
    assert home.vmmd.count("VerifyVolume") == 1
    await home.vmmd.finish("block2", 0)
    await home.wait_replacement(answer.replacement_id, "DONE")
    assert home.vmmd.count("VerifyVolume") == 2


async def test_members_that_go_on_differing_fail_it_and_a_retry_goes_on_there(
    home: House,
) -> None:
    home.vmmd.quick = True
    home.vmmd.reports += [differs(17, 1, 1, 2)] * (MENDS_MAX + 1)
    answer = await home.replace(home.vcr())
    for number in range(1, MENDS_MAX + 1):
        await home.vmmd.until(lambda number=number: home.vmmd.count("RepairMember") == number)
        await home.vmmd.finish("block2", 2)
    record = await home.wait_replacement(answer.replacement_id, "FAILED")
    assert "extent 17" in record.last_error
    assert record.failed_in == pb.REPLACEMENT_STATE_VERIFY
    await home.replacements.RetryReplacement(
        pb.RetryReplacementRequest(id=answer.replacement_id), timeout=SECONDS
    )
    await home.wait_replacement(answer.replacement_id, "DONE")
    assert home.vmmd.count("ReplaceVcr") == 1, "it went on where it failed"


async def test_the_repair_limit_reaches_the_machine(home: House) -> None:
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "REPAIR")
    changed = await home.replacements.SetRepairLimits(
        pb.SetRepairLimitsRequest(id=answer.replacement_id, bytes_per_second_max=1 << 20),
        timeout=SECONDS,
    )
    assert changed.replacement.repair_bytes_per_second_max == 1 << 20
    assert home.vmmd.limits[-1].bytes_per_second_max == 1 << 20
    listed = await home.replacements.ListReplacements(
        pb.ListReplacementsRequest(disk="block2"), timeout=SECONDS
    )
    assert [each.id for each in listed.replacements] == [answer.replacement_id]
