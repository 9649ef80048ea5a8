"""The overview of a thousand disks in a real browser; the control plane and its store are real, the
machines scripted."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.console import inventory
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import House, house
from tests.integration.cluster import LOOPBACK

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

INSTANCES = 125
# As many as a machine takes.
DISKS = 8
# What pages.js shows at once.
ROWS = 50
EXTENTS = 12_800

# Remembers the rows as they are.
REMEMBER = """box => {
  const rows = [...box.querySelectorAll("tbody tr")];
  window.before = new Map(rows.map((row) => [row.textContent, row]));
}"""
# (how many rows tell what they told then, how many of these are other rows now).
KEPT = """box => {
  const now = [...box.querySelectorAll("tbody tr")].filter((row) => before.has(row.textContent));
  return [now.length, now.filter((row) => before.get(row.textContent) !== row).length];
}"""


async def sick(home: House, state: int = volume_pb.SLOT_STATE_WAIT_CONNECT) -> None:
    """The last member of one disk."""
    home.vmmd.slot("disk-0700", 2).state = state  # type: ignore[assignment]
    await home.vmmd.tell()


async def many(home: House) -> None:
    """A thousand disks, one of them degraded."""
    for machine in range(INSTANCES):
        disks = []
        for number in range(DISKS):
            disk = home.disk_json()
            name = f"disk-{machine * DISKS + number:04}"
            disk |= {"name": name, "slot": number}
            vcr = disk["volume_construction_request"]
            opts = vcr["sub_volumes"][0]["opts"]
            vcr["id"] = opts["id"] = str(uuid.uuid4())
            # Nobody listens there: what the machines say is looked at, and they are scripted.
            opts["target"] = [f"127.{copy}.{machine}.{number + 1}:8810" for copy in (1, 2, 3)]
            disks.append(disk)
        await home.create(f"vm-{machine:03}", disks=disks)
        for disk in disks:
            volume = home.vmmd.volumes[disk["name"]]
            volume.state = volume_pb.VOLUME_STATE_ACTIVE
            for slot in volume.regions[0].slots:
                slot.state = volume_pb.SLOT_STATE_ACTIVE
    await sick(home)


async def one_change_is_told_in_few_words(home: House) -> None:
    """What a watcher gets on the wire: all at first, then the one disk that changed."""
    headers = {"x-stairwell-console": "1"}
    async with (
        httpx.AsyncClient(base_url=home.control.console_url, headers=headers, timeout=100) as web,
        web.stream("POST", "/api/watch/overview", json={}) as answer,
    ):
        news = (line[6:] async for line in answer.aiter_lines() if line.startswith("data: "))
        whole = await anext(news)
        assert len(json.loads(whole)["disks"]["changed"]) == INSTANCES * DISKS
        await sick(home, volume_pb.SLOT_STATE_NEGOTIATING)
        async for text in news:
            # Of three thousand downstairs some may be heard of just then.
            disks = json.loads(text)["disks"]
            assert len(json.dumps(disks)) < 2000
            if disks["changed"]:
                assert [disk["name"] for disk in disks["changed"]] == ["disk-0700"]
                assert not disks["gone"]
                return


async def a_large_map_is_no_large_page(page: Any) -> None:
    """Every second of so many extents in another state: the most that there is to draw."""
    label = f"slot 2: {EXTENTS // 2} in sync, {EXTENTS // 2} dirty"
    canvas = page.locator(f"canvas.extents[aria-label*='{label}']")
    await canvas.wait_for()
    assert await page.evaluate("document.querySelectorAll('*').length") < 300
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    # Two pixels each way for an extent, on a phone too.
    size = await canvas.evaluate("canvas => canvas.width * canvas.height")
    assert size >= 3 * EXTENTS * 4


async def what_others_do_leaves_alone(home: House, page: Any, disks: Any) -> None:
    """The place where one reads, the focus, and rows that tell what they told."""
    await disks.evaluate("box => { box.scrollTop = 300; }")
    seen = disks.locator("tbody a", has_text="disk-0020")
    await seen.evaluate("link => link.focus({ preventScroll: true })")
    top = await seen.evaluate("link => link.getBoundingClientRect().top")
    # All machines answer in time, before and after: else rows tell that they do not.
    calm = page.get_by_role("heading", name="1 degraded, 0 away, 999 healthy")
    await calm.wait_for()
    await disks.evaluate(REMEMBER)
    await sick(home, volume_pb.SLOT_STATE_LIVE_REPAIR)
    await disks.get_by_text("live repair").wait_for()
    await calm.wait_for()
    same, others = await disks.evaluate(KEPT)
    assert same > ROWS / 2
    assert others == 0, "what tells the same is the same row"
    now = await seen.evaluate("link => link.getBoundingClientRect().top")
    assert abs(now - top) <= 1, "it stays where one was reading it"
    await sick(home, volume_pb.SLOT_STATE_ACTIVE)
    await page.get_by_role("heading", name="0 degraded, 0 away, 1000 healthy").wait_for()
    assert await page.evaluate("document.activeElement.textContent") == "disk-0020"
    assert await disks.evaluate("box => box.scrollTop") > 0


async def test_a_thousand_disks(
    browser: Any, tmp_path: Path, open_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Looks follow each other at once here, and not a fifth of the time.
    monkeypatch.setattr(inventory, "REST", 0.1)
    async with house(tmp_path / "data", console=f"{LOOPBACK}:0", pace=1.0) as home:
        await many(home)
        columns = [
            volume_pb.ExtentColumn(slot=slot, runs="sd" * (EXTENTS // 2)) for slot in range(3)
        ]
        home.vmmd.extents = [
            volume_pb.RegionExtents(path="sub_volumes[0]", extent_count=EXTENTS, columns=columns)
        ]
        page = await open_page(home.control.console_url, width=390)
        # A look at so many takes its time.
        page.set_default_timeout(100_000)
        await page.get_by_role("heading", name="1 degraded, 0 away, 999 healthy").wait_for()
        rows = page.locator("#overview tbody tr")
        assert ROWS < await rows.count() <= 3 * ROWS, "what is in the page has its bound"
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        disks = page.get_by_role("region", name="disks")
        first = disks.locator("tbody a").first
        assert await first.inner_text() == "disk-0700", "the worst one comes first"
        place = page.locator("#disks-place")
        assert await place.inner_text() == "1\u201350 of 1000"

        # Every disk can be reached, by keyboard alone.
        bar = page.locator("p.pages", has=place)
        await bar.get_by_role("button", name="Next").press("Enter")
        assert await place.inner_text() == "51\u2013100 of 1000"
        assert await first.inner_text() == "disk-0049"
        for _ in range(1000 // ROWS - 2):
            await bar.get_by_role("button", name="Next").press("Enter")
        assert await disks.locator("tbody a").last.inner_text() == "disk-0999"
        assert await bar.get_by_role("button", name="Next").is_disabled()
        wanted = page.locator("#disks-filter")
        await wanted.fill("VM-012 disk-00 healthy")
        assert await place.inner_text() == "1\u20134 of 4 that match, of 1000"
        await wanted.fill("nothing of that name")
        await page.get_by_text("nothing matches the filter").wait_for()
        await one_change_is_told_in_few_words(home)

        # A filter is there again after one has been elsewhere.
        await wanted.fill("VM-012 disk-00 healthy")
        await first.press("Enter")
        await page.get_by_role("heading", name="disk-0096").wait_for()
        await a_large_map_is_no_large_page(page)
        await page.go_back()
        await disks.get_by_text("disk-0096").wait_for()
        assert await place.inner_text() == "1\u20134 of 4 that match, of 1000"
        await wanted.fill("")
        await what_others_do_leaves_alone(home, page, disks)
