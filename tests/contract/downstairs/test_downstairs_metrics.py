"""The metrics of a downstairs in service, as Prometheus reads them, and their document."""

from __future__ import annotations

import asyncio
import re

import pytest

from downstaird.__main__ import main
from downstaird.metrics import METRICS, RegionMetrics
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.process_metrics import PROCESS_METRICS
from stairlib.wire.frame import OpKind
from tests.contract.downstairs.conftest import GEOMETRY, pattern
from tests.contract.test_controlplane_metrics import DOCUMENT, labelled, scraped


@pytest.fixture
async def metered(serve):
    """A downstairs and where its metrics are read."""
    downstairs = await serve()
    metrics = Metrics.configure("downstairs", "test", "127.0.0.1:0")
    RegionMetrics(metrics, downstairs.daemon.host)
    yield downstairs, metrics.address
    await asyncio.to_thread(metrics.shutdown)


async def test_what_sessions_do_is_added_up_also_when_they_have_ended(metered, upstairs) -> None:
    downstairs, address = metered
    found = await scraped(address)
    assert found["stairwell_region_sessions", ()] == 0
    assert found["stairwell_region_io_bytes_total", labelled(direction="write")] == 0
    assert found["stairwell_region_extents", labelled(state="total")] == GEOMETRY.extent_count
    first = await downstairs.session(upstairs)
    await first.write(0, pattern(1, 4))
    await first.read(0, 2)
    found = await scraped(address)
    assert found["stairwell_region_sessions", ()] == 1
    assert found["stairwell_region_extents", labelled(state="dirty")] == 1
    await first.flush(1)
    # Another one takes over; what the first has done still counts.
    second = await downstairs.session(upstairs, generation=2)
    await second.write(0, pattern(2, 1))
    found = await scraped(address)
    assert found["stairwell_region_sessions", ()] == 1
    assert found["stairwell_region_io_bytes_total", labelled(direction="write")] == 5 * 4096
    assert found["stairwell_region_io_bytes_total", labelled(direction="read")] == 2 * 4096
    flushes = labelled(kind="flush", outcome="ok", le="+Inf")
    assert found["stairwell_region_work_bucket_total", flushes] == 1
    bounds = [
        found["stairwell_region_work_bucket_total", labelled(kind="flush", outcome="ok", le=bound)]
        for bound in ("0.0005", "0.01", "5")
    ]
    assert bounds == sorted(bounds)
    assert bounds[-1] == 1
    spent = found["stairwell_region_work_sum_seconds_total", labelled(kind="flush", outcome="ok")]
    assert 0 < spent < 5
    assert found["stairwell_region_frames_total", ()] >= 4
    assert found["process_memory_usage_bytes", ()] > 1 << 20


async def test_a_refused_operation_counts_as_failed(metered, upstairs) -> None:
    downstairs, address = metered
    session = await downstairs.session(upstairs)
    await session.one(OpKind.READ, offset=GEOMETRY.block_count, length=1)
    assert (await scraped(address))["stairwell_region_failures_total", ()] == 1


async def test_the_document_lists_what_is_exposed(metered, upstairs) -> None:
    downstairs, address = metered
    session = await downstairs.session(upstairs)
    await session.write(0, pattern(1, 1))
    await session.flush(1)
    text = DOCUMENT.read_text()
    tables = [
        text.partition(f"<!-- states: {name} -->")[2].partition("<!-- end -->")[0]
        for name in ("metrics-downstairs", "metrics-process")
    ]
    listed = re.findall(r"^\| `([a-z_.]+)` \| `(\w+)` \|", "".join(tables), re.MULTILINE)
    assert [name for name, _ in listed] == [each.name for each in (*METRICS, *PROCESS_METRICS)]
    exposed = {
        re.sub(r"_(bucket|count|sum|created)$", "", name)
        for name, _ in await scraped(address)
        if not name.startswith("target_info")
    }
    assert exposed == {name for _, name in listed}


def test_other_hosts_read_them_only_if_it_is_said(tmp_path, capsys) -> None:
    status = main(["run", "-d", str(tmp_path), "-p", "0", "--metrics", "0.0.0.0:0"])
    assert status != 0
    told = capsys.readouterr().err
    assert "metrics" in told
    assert "--insecure" in told
