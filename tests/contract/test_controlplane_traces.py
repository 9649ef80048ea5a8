"""The trace of a replacement over restarts, waits and failures, and that of a scrub."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from stairlib.model.errors import DataError, InvalidRequestError, UnavailableError
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.telemetry.v1.trace_service_pb2 import Span
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, VOLUME, House, house, running
from tests.contract.test_controlplane_restarts import Gate

TOTAL = 8 << 30
REQUEST = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=8) as found:
        yield found


async def trace(home: House, identity: str) -> list[Span]:
    request = pb.GetReplacementTraceRequest(id=identity)
    answer = await home.replacements.GetReplacementTrace(request, timeout=SECONDS)
    return list(answer.spans)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def told(span: Span) -> list[str]:
    return [event.name for event in span.events]


async def test_request_and_replacement_are_two_traces_that_link_to_each_other(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Tracing] = []
    configure = Tracing.configure
    monkeypatch.setattr(
        Tracing, "configure", lambda *names: kept.append(configure(*names)) or kept[-1]
    )
    async with running(home.data.parent / "other", home.vmmd, home.members) as fresh:
        await fresh.create_running()
        fresh.vmmd.quick = True
        answer = await fresh.disks.ReplaceVcr(
            disk_pb.ReplaceVcrRequest(name="block2", vcr_json=json.dumps(fresh.vcr())),
            timeout=SECONDS,
            metadata=(("traceparent", REQUEST),),
        )
        await fresh.wait_replacement(answer.replacement_id, "DONE")
        spans = await trace(fresh, answer.replacement_id)
        assert answer.trace_id == answer.replacement_id.replace("-", "")
        (root,) = named(spans, "replacement")
        ours = kept[0].spans("ab" * 16)
        (call,) = [span for span in ours if span.name.endswith("/ReplaceVcr")]
        assert [(link.trace_id, link.span_id) for link in root.links] == [("ab" * 16, call.span_id)]
        assert [(link.trace_id, link.span_id) for link in call.links] == [
            (answer.trace_id, root.span_id)
        ]
        assert call.attributes["replacement.id"] == answer.replacement_id
        (preflight,) = named(spans, "replacement preflight")
        assert preflight.span_id not in {span.span_id for span in ours}
        assert preflight.links[0].trace_id == "ab" * 16


async def test_milestones_waits_and_limits_are_told_and_looks_are_not(home: House) -> None:
    await home.create_running()
    answer = await home.replace(home.vcr())
    identity = answer.replacement_id
    await home.wait_replacement(identity, lambda record: bool(record.blocked_on))
    for tenth in (1, 1, 2, 5):
        for extra in range(3):
            await home.vmmd.progress("block2", 2, tenth * TOTAL // 10 + (extra << 20), TOTAL)
            await home.wait_replacement(
                identity,
                lambda r, n=tenth * TOTAL // 10 + (extra << 20): r.bytes_done >= n,
            )
    limit = pb.SetRepairLimitsRequest(id=identity, bytes_per_second_max=5 << 20)
    await home.replacements.SetRepairLimits(limit, timeout=SECONDS)
    (repair,) = named(await trace(home, identity), "replacement repair")
    assert repair.end_time_unix_nano == 0, "it is under way, and shown so"
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(identity, "DONE")
    (repair,) = named(await trace(home, identity), "replacement repair")
    assert told(repair) == [
        "blocked", "unblocked", "progress", "progress", "progress", "limit changed",
    ]  # fmt: skip
    percent = [e.attributes["percent"] for e in repair.events if e.name == "progress"]
    assert percent == ["10", "20", "50"]
    assert repair.events[-1].attributes["bytes_per_second_max"] == str(5 << 20)


async def test_an_attempt_that_fails_and_the_wait_after_it_have_spans(home: House) -> None:
    await home.create_running()
    home.vmmd.quick = True
    home.vmmd.failures["ReplaceVcr"] = [DataError("the disk is bad"), UnavailableError("is away")]
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "DONE")
    spans = await trace(home, answer.replacement_id)
    first, second, third = named(spans, "replacement apply")
    assert first.status == "ERROR"
    assert "the disk is bad" in first.status_message
    assert told(second) == told(third) == ["tried again"]
    assert [each.attributes["attempt"] for each in (first, second, third)] == ["0", "1", "1"]
    backoff, away = named(spans, "replacement wait")
    assert "the disk is bad" in backoff.attributes["reason"]
    assert told(away) == ["blocked", "unblocked"]
    assert (await home.disk()).replacement_id in ("", answer.replacement_id)


async def test_a_step_that_was_cut_by_a_kill_is_told_as_cut(home: House, tmp_path: Path) -> None:
    """The store as it was during the step is what a killed control plane leaves behind."""
    await home.create_running()
    gate = Gate(home.vmmd, "ReplaceVcr")
    answer = await home.replace(home.vcr())
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    left = tmp_path / "left"
    shutil.copytree(home.data, left)
    await home.control.__aexit__(None, None, None)
    gate.open()
    home.vmmd.quick = True
    async with running(left, home.vmmd, home.members) as second:
        await second.wait_replacement(answer.replacement_id, "DONE")
        spans = await trace(second, answer.replacement_id)
    cut, whole = named(spans, "replacement apply")
    assert cut.status == "ERROR"
    assert "cut short" in cut.status_message
    assert cut.start_time_unix_nano < cut.end_time_unix_nano <= whole.start_time_unix_nano
    assert whole.status == "UNSET"
    assert told(whole)[0] == "resumed by a new control plane"
    (root,) = named(spans, "replacement")
    assert root.end_time_unix_nano
    assert root.links, "the call that asked for it is known after a restart, too"
    assert {span.trace_id for span in spans} == {answer.trace_id}


async def test_a_failure_ends_the_root_and_another_try_is_a_span_below_it(home: House) -> None:
    await home.create_running()
    home.vmmd.quick = True
    home.vmmd.failures["ReplaceVcr"] = [InvalidRequestError("it makes no sense")]
    answer = await home.replace(home.vcr())
    failed = await home.wait_replacement(answer.replacement_id, "FAILED")
    (root,) = named(await trace(home, answer.replacement_id), "replacement")
    assert (root.status, root.status_message) == ("ERROR", failed.last_error)
    request = pb.RetryReplacementRequest(id=answer.replacement_id)
    await home.replacements.RetryReplacement(request, timeout=SECONDS)
    await home.wait_replacement(answer.replacement_id, "DONE")
    spans = await trace(home, answer.replacement_id)
    (again,) = named(spans, "replacement tried again")
    assert (again.parent_span_id, again.status) == (root.span_id, "UNSET")
    assert named(spans, "replacement")[0].status == "ERROR"


async def test_a_scrub_has_a_trace_of_its_own(home: House) -> None:
    await home.create_over()
    scrub = await home.start_scrub()
    await home.vmmd.until(lambda: home.vmmd.count("StartScrub") > 0)
    await home.vmmd.scrub("block2", bytes_done=3 << 30, bytes_total=8 << 30)
    (root,) = named(await trace(home, scrub.trace_id), "scrub")
    assert root.end_time_unix_nano == 0
    await home.vmmd.scrub("block2", state=volume_pb.SCRUB_STATE_DONE)
    async with asyncio.timeout(SECONDS):
        while not root.end_time_unix_nano:
            (root,) = named(await trace(home, scrub.trace_id), "scrub")
    spans = await trace(home, scrub.trace_id)
    assert root.attributes["state"] == "DONE"
    assert root.attributes["volume.id"] == VOLUME
    assert {"scrub copy", "scrub drop"} <= {span.name for span in spans}
    assert {span.service for span in spans} == {"controlplane", "vmmd"}
    assert all(s.parent_span_id == root.span_id for s in spans if s.name.startswith("scrub "))


async def test_a_trace_that_nobody_knows_is_not_found(home: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await trace(home, "12" * 16)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
