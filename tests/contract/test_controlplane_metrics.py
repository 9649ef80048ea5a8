"""The metrics of a real control plane, as Prometheus reads them, and their document."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.daemon import ControlPlane
from controlplane.metrics import METRICS
from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.rpc.call_guard import RPC_METRICS
from stairlib.telemetry.metrics import exposed_name
from tests.contract.controlplane_house import House, house

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


async def scraped(address: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return answer.read().decode()

    text = await asyncio.to_thread(read)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


@pytest.fixture
async def home(tmp_path: Path):
    async with house(tmp_path / "data", metrics="127.0.0.1:0") as found:
        yield found


async def test_a_replacement_is_counted_from_its_wait_to_its_end(home: House) -> None:
    await home.create_running()
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, lambda record: bool(record.blocked_on))
    found = await scraped(home.control.metrics_address)
    assert found["stairwell_replacements", labelled(state="REPAIR")] == 1
    assert found["stairwell_replacements", labelled(state="APPLY")] == 0
    assert found["stairwell_replacement_blocked", labelled(reason="member_not_ready")] == 1
    assert found["stairwell_replacement_oldest_age_seconds", ()] > 0
    assert found["stairwell_replacement_ended_total", labelled(state="DONE")] == 0
    await home.vmmd.progress("block2", 2, 1 << 20, 8 << 30)
    await home.wait_replacement(answer.replacement_id, lambda record: record.bytes_copied > 0)
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(answer.replacement_id, "DONE")
    found = await scraped(home.control.metrics_address)
    assert found["stairwell_replacement_ended_total", labelled(state="DONE")] == 1
    assert found["stairwell_replacement_copied_bytes_total", ()] == 1 << 20
    assert found["stairwell_replacements", labelled(state="REPAIR")] == 0
    assert found["stairwell_replacement_oldest_age_seconds", ()] == 0
    steps = {
        dict(labels)["step"]: value
        for (name, labels), value in found.items()
        if name == "stairwell_replacement_step_duration_seconds_count"
    }
    assert steps == {"APPLY": 1, "REPAIR": 1, "VERIFY": 1, "RETIRE": 1}


async def test_what_is_exposed_is_what_the_document_lists(home: House) -> None:
    await home.create_running()
    home.vmmd.quick = True
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "DONE")
    families = re.findall(
        r"^\| `(stairwell[a-z_.]+)` \| `(\w+)` \|",
        DOCUMENT.read_text().partition("## A downstairs")[0],
        re.MULTILINE,
    )
    assert [name for name, _ in families] == [metric.name for metric in METRICS]
    exposed = {
        re.sub(r"_(bucket|count|sum|created)$", "", name)
        for name, _ in await scraped(home.control.metrics_address)
        if name.startswith("stairwell")
    }
    assert exposed == {name for _, name in families} | {exposed_name(each) for each in RPC_METRICS}


async def test_a_port_that_is_taken_is_said_at_the_start(home: House, tmp_path: Path) -> None:
    taken = home.control.metrics_address
    second = ControlPlane("127.0.0.1:0", home.control._vmmd_address, tmp_path / "2", metrics=taken)
    with pytest.raises(UnavailableError, match=r"metrics cannot be served at .*--metrics"):
        await second.__aenter__()
    unix = ControlPlane(
        "127.0.0.1:0", home.control._vmmd_address, tmp_path / "3", metrics="unix:/x"
    )
    with pytest.raises(InvalidRequestError, match="host:port"):
        await unix.__aenter__()
