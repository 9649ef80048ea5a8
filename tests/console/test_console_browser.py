"""The console in a real browser, on a real cluster: `make test-console`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.core.replacement import MENDS_MAX
from controlplane.daemon import ControlPlane
from stairlib.rpc.access import Role
from stairlib.rpc.authority import Authority, Wish
from stairlib.rpc.server import Security, TokenPort
from stairlib.rpc.tls import TlsFiles
from stairlib.rpc.tokens import TokenBook, add_line, new_token
from stairlib.runtime.addresses import parse_address
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import house
from tests.integration.cluster import LOOPBACK, MIB, Cluster, until
from tests.integration.volume import Volume, fresh_volume
from tests.ports import free_ports

pytestmark = pytest.mark.processes

# How many pixels of a canvas are not empty.
COLOURED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, index) => index % 4 === 3 && value).length;
}"""
# By how many pixels, at most, a band is away from the line that it marks.
BANDS_BESIDE_LINES = """paper => {
  const text = paper.querySelector("textarea");
  const style = getComputedStyle(text);
  const [edge, padding, line] = ["borderTopWidth", "paddingTop", "lineHeight"]
    .map((name) => parseFloat(style[name]));
  const begin = text.getBoundingClientRect().top + edge + padding - text.scrollTop;
  return Math.max(...[...paper.querySelectorAll(".changed")].map((band) => {
    const wanted = begin + (Number(band.dataset.line) - 1) * line;
    return Math.abs(band.getBoundingClientRect().top - wanted);
  }));
}"""
# Per column of a map, how many pixels have the colour of the state with this letter.
COLUMNS = """(canvas, letter) => {
  const paint = document.createElement("canvas").getContext("2d");
  paint.fillStyle = getComputedStyle(canvas).getPropertyValue(`--extent-${letter}`).trim();
  paint.fillRect(0, 0, 1, 1);
  const [red, green, blue] = paint.getImageData(0, 0, 1, 1).data;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = [0, 0, 0];
  for (let at = 0; at < data.length; at += 4) {
    const [r, g, b, opaque] = data.slice(at, at + 4);
    const same = r === red && g === green && b === blue && opaque;
    if (same) found[Math.floor(((at / 4) % canvas.width) * 3 / canvas.width)] += 1;
  }
  return found;
}"""
COPIED_ABOVE = """known => {
  const label = document.querySelector("canvas.extents").getAttribute("aria-label");
  const [, copied] = label.match(/slot 2: .*?([0-9]+) copied/) || [0, 0];
  return Number(copied) > known ? Number(copied) : false;
}"""
NEXT_FRAME = "() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))"
EXTENTS = 256
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[Cluster, str]]:
    async with Cluster.started(tmp_path / "cluster") as started:
        address = f"{LOOPBACK}:{free_ports(1)}"
        await started.controlplane.end()
        started.controlplane.command += ["--console", address]
        await started.controlplane.start()
        yield started, f"http://{address}/"


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[str]:
    """A control plane without machines, which is all that the desk needs to judge."""
    async with ControlPlane(
        f"{LOOPBACK}:0", f"{LOOPBACK}:1", tmp_path / "data", console=f"{LOOPBACK}:0",
        grace_seconds=0,
    ) as control:  # fmt: skip
        yield control.console_url


async def test_a_replacement_is_watched_and_its_limit_moved(
    browser: Any, cluster: tuple[Cluster, str], open_page: Any
) -> None:
    home, url = cluster
    programs = [home.downstairs() for _ in range(4)]
    for program in programs:
        await program.start()
    volume = Volume(home, programs)
    await volume.create()
    await volume.run()
    await volume.fill(32 * MIB)
    page = await open_page(url, width=390, scheme="dark")
    await page.get_by_role("heading", name="1 healthy").wait_for()
    wide = await page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "the page itself never scrolls sideways"
    await volume.limit(2 * MIB)
    await volume.replace()
    await page.locator("a[href^='#/replacement/']").first.press("Enter")
    await page.locator("li[data-state=REPAIR][aria-current=step]").wait_for()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390

    async def copied() -> tuple[float, int]:
        return time.monotonic(), (await volume.slot(2)).repair.bytes_copied

    slider = page.locator("#limit")
    await slider.focus()
    await page.keyboard.press("Home")
    await page.locator("main dl").get_by_text("1.0 MiB/s (limit)").wait_for()
    began, before = await until(copied, lambda seen: seen[1] > 0)
    ended, after = await until(copied, lambda seen: seen[0] >= began + 2)
    assert (after - before) / (ended - began) < 1.5 * MIB
    await page.keyboard.press("End")
    # Obeyed: what is left would take half a minute under the limit.
    await page.locator("li[data-state=DONE][aria-current=step]").wait_for(timeout=12_000)
    assert await page.locator("#bar").evaluate("bar => bar.value") == 1
    events = await page.locator("main table").inner_text()
    for event in ("Repaired", "Verified", "Retired"):
        assert event in events
    assert await page.locator("#pause").is_disabled()
    await page.locator("#trace").press("Enter")
    await page.locator("#falls").get_by_text("spans").wait_for()
    drawn = await page.locator("canvas.waterfall").evaluate(COLOURED)
    await page.locator("#zoom").press("End")
    wide = page.locator("canvas.waterfall")
    assert await wide.evaluate("canvas => canvas.clientWidth") > 390
    assert drawn > 100


async def test_pause_resume_and_cancel_are_clicked(
    browser: Any, cluster: tuple[Cluster, str], open_page: Any
) -> None:
    home, url = cluster
    async with fresh_volume(home) as volume:
        await volume.fill()
        await volume.limit(1 * MIB)
        started = await volume.replace()
        await volume.mid_repair(started.replacement_id)
        page = await open_page(f"{url}#/replacement/{started.replacement_id}")

        async def lit(state: str) -> None:
            await page.locator(f"li[data-state={state}][aria-current=step]").wait_for()

        pause, resume, cancel = (page.locator(f"#{name}") for name in ("pause", "resume", "cancel"))
        await lit("REPAIR")
        assert await resume.is_disabled()
        await pause.click()
        await lit("PAUSED")
        found = await home.get_replacement(started.replacement_id)
        assert found.state == replacement_pb.REPLACEMENT_STATE_PAUSED
        assert await pause.is_disabled()
        await resume.click()
        await lit("REPAIR")
        assert await resume.is_disabled()
        await cancel.click()
        sure = page.get_by_role("dialog")
        await sure.get_by_text("undone while the old member is there").wait_for()
        await sure.get_by_role("button", name="Leave it").press("Enter")
        await sure.wait_for(state="hidden")
        await cancel.click()
        # Escape is no yes either.
        await page.keyboard.press("Escape")
        await sure.wait_for(state="hidden")
        found = await home.get_replacement(started.replacement_id)
        assert found.state == replacement_pb.REPLACEMENT_STATE_REPAIR
        await cancel.click()
        await sure.get_by_role("button", name="Do it").click()
        await lit("CANCELLED")
        for button in (pause, resume, cancel, page.locator("#retry")):
            assert await button.is_disabled()
        assert (await volume.slot(2)).address == volume.targets[2]
        await volume.verify()


async def test_a_failed_one_is_retried_by_a_click(
    browser: Any, tmp_path: Path, open_page: Any
) -> None:
    """The machine is scripted: copies that go on differing are no fault of a real one."""
    differing = volume_pb.ExtentDifference(region_path="sub_volumes[0]", extent=17, digests=[1, 2])
    report = volume_pb.VerifyReport(
        extents_compared=128, members_compared=3, differences=[differing]
    )
    async with house(tmp_path / "data", console=f"{LOOPBACK}:0") as home:
        await home.create_running()
        home.vmmd.quick = True
        home.vmmd.reports += [report] * (MENDS_MAX + 1)
        one = (await home.replace(home.vcr())).replacement_id
        page = await open_page(f"{home.control.console_url}#/replacement/{one}")
        for mended in range(1, MENDS_MAX + 1):
            await home.vmmd.until(lambda mended=mended: home.vmmd.count("RepairMember") == mended)
            await home.vmmd.finish("block2", 2)
        await page.locator("li[data-state=FAILED][aria-current=step]").wait_for()
        assert "extent 17" in await page.locator("main dl").inner_text()
        assert await page.locator("#cancel").is_enabled()
        await page.locator("#retry").click()
        await page.locator("li[data-state=DONE][aria-current=step]").wait_for()
        assert await page.locator("#retry").is_disabled()


async def test_a_replacement_begins_at_the_desk(
    browser: Any, cluster: tuple[Cluster, str], open_page: Any
) -> None:
    home, url = cluster
    async with fresh_volume(home) as volume:
        await volume.fill()
        page = await open_page(f"{url}#/vcr")
        await page.locator("#original").fill(json.dumps(volume.vcr(1, volume.targets), indent=2))
        # As the files of the command line wrap it.
        wrapped = {"name": volume.disk, "vcr": volume.changed()}
        await page.locator("#request").fill(json.dumps(wrapped, indent=2))
        await page.get_by_text("verdict: replace").wait_for()
        await page.locator("#disk").fill(volume.disk)
        sure = page.get_by_role("dialog")
        for end in ("Leave it", "Do it"):
            await page.locator("#start").click()
            told = await sure.locator("p").inner_text()
            for part in (volume.disk, "slot 2", volume.targets[2], volume.spare.address):
                assert part in told
            assert not (await volume.info()).replacement_id, "nothing began before the yes"
            await sure.get_by_role("button", name=end).click()
        await page.wait_for_url("**/#/replacement/*")
        await page.locator("li[data-state=DONE][aria-current=step]").wait_for()
        one = await home.get_replacement(page.url.rpartition("/")[2])
        assert (one.disk, one.new_target) == (volume.disk, volume.spare.address)
        assert "Verified" in await page.locator("main table").inner_text()
        await volume.verify()


async def test_a_disk_is_watched_while_its_guest_works(
    browser: Any, cluster: tuple[Cluster, str], open_page: Any
) -> None:
    home, url = cluster
    async with fresh_volume(home) as volume, volume.load():
        page = await open_page(url, width=390)
        await page.locator("a[href^='#/disk/']").first.press("Enter")
        await page.get_by_role("heading", name=volume.disk).wait_for()
        await page.locator("#regions").get_by_text("whole").nth(2).wait_for()
        for label in ("p99", "guest", "requests a second"):
            chart = page.locator(f"canvas.chart[aria-label*='{label}']")
            await chart.wait_for()
            assert await chart.evaluate(COLOURED) > 100
        await page.locator("canvas.extents[aria-label*='dirty']").wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        volume.downstairs[1].kill()
        slots = page.locator("#regions table")
        await slots.locator("td.bad").wait_for()
        assert volume.targets[1] in await slots.locator("tr:has(td.bad)").inner_text()
        await volume.downstairs[1].start()
        await slots.locator("td.bad").wait_for(state="detached")


async def test_a_map_of_extents_is_seen_to_fill(
    browser: Any, cluster: tuple[Cluster, str], open_page: Any
) -> None:
    home, url = cluster
    async with fresh_volume(home, extent_count=EXTENTS) as volume:
        await volume.fill(16 * MIB)
        page = await open_page(f"{url}#/disk/{volume.disk}", width=390)
        canvas = page.locator("canvas.extents")
        await page.locator(f"canvas.extents[aria-label*='slot 2: {EXTENTS} in sync']").wait_for()

        async def drawn(letter: str) -> list[int]:
            """How many pixels of each column have the colour of a state."""
            found: list[int] = await canvas.evaluate(COLUMNS, letter)
            return found

        whole = await drawn("s")
        assert min(whole) > EXTENTS
        assert await drawn("c") == [0, 0, 0]
        await volume.limit(1 * MIB)
        replacement = (await volume.replace()).replacement_id
        seen = []
        before = 0
        for _ in range(3):
            # By the words, which are told with the cells.
            now = await page.wait_for_function(COPIED_ABOVE, arg=before)
            before = await now.json_value()
            await page.evaluate(NEXT_FRAME)
            copied, left = await drawn("c"), await drawn("x")
            assert copied[:2] == left[:2] == [0, 0]
            seen.append((copied[2], left[2]))
        assert sorted(seen) == seen
        assert [left for _copied, left in seen] == sorted((left for _c, left in seen), reverse=True)
        assert len(set(seen)) == len(seen)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await page.emulate_media(color_scheme="dark")
        await page.evaluate(NEXT_FRAME)
        assert (await drawn("c"))[2] > 0, "drawn anew in the colours of the dark"
        await volume.limit(0)
        await volume.done(replacement)
        await page.locator(f"canvas.extents[aria-label*='slot 2: {EXTENTS} in sync']").wait_for()
        await page.emulate_media(color_scheme="light")
        await page.evaluate(NEXT_FRAME)
        assert await drawn("s") == whole


async def test_a_violation_is_shown_at_its_line(browser: Any, alone: str, open_page: Any) -> None:
    page = await open_page(f"{alone}#/vcr")
    text = (EXAMPLES / "replace.json").read_text()
    wrong = text.replace('"block_size": 4096', '"block_size": 4095', 1)
    await page.locator("#request").fill(wrong)
    line = wrong[: wrong.index("4095")].count("\n") + 1
    await (
        page.locator("#found")
        .get_by_role("button", name=str(line), exact=True)
        .first.press("Enter")
    )
    assert "4095" in await page.evaluate("getSelection().toString()")
    await page.locator("#request").fill(text)
    await page.get_by_text("nothing is wrong").wait_for()
    await page.locator("#original").fill((EXAMPLES / "crucible-disks.json").read_text())
    await page.get_by_text("verdict: replace").wait_for()


async def test_two_requests_stand_side_by_side(browser: Any, alone: str, open_page: Any) -> None:
    old = (EXAMPLES / "crucible-disks.json").read_text()
    new = (EXAMPLES / "replace.json").read_text()
    page = await open_page(f"{alone}#/vcr")
    await page.locator("#original").fill(old)
    await page.locator("#request").fill(new)
    await page.get_by_text("verdict: replace").wait_for()
    left, right = page.locator(".paper").nth(0), page.locator(".paper").nth(1)
    boxes = [await each.bounding_box() for each in (left, right)]
    assert boxes[0]["y"] == boxes[1]["y"], "beside each other where there is room"
    # The generation and the one target, each in its own text, however the files wrap them.
    for paper, text, wanted in (
        (left, old, ['"gen": 1,', '"127.0.0.1:8830"']),
        (right, new, ['"gen": 2,', '"127.0.0.1:8840"']),
    ):
        bands = await paper.locator(".changed").all()
        numbers = [int(await each.get_attribute("data-line")) for each in bands]
        assert [text.splitlines()[number - 1].strip() for number in numbers] == wanted
        assert await paper.evaluate(BANDS_BESIDE_LINES) <= 1
    # Behind their lines too when the text is scrolled.
    await right.locator("textarea").evaluate("text => { text.scrollTop = 54; }")
    await page.wait_for_function(
        f"paper => ({BANDS_BESIDE_LINES})(paper) <= 1", arg=await right.element_handle()
    )
    # What would be refused is told at its line, in words too.
    wrong = new.replace('"extent_count": ', '"extent_count": 1', 1)
    await page.locator("#request").fill(wrong)
    await page.get_by_text("verdict: reject").wait_for()
    line = wrong[: wrong.index('"extent_count"')].count("\n") + 1
    row = page.locator("#verdict tr", has_text="extent_count").first
    await row.get_by_role("button", name=str(line), exact=True).first.press("Enter")
    assert "extent_count" in await page.evaluate("getSelection().toString()")
    await page.set_viewport_size({"width": 390, "height": 900})
    boxes = [await each.bounding_box() for each in (left, right)]
    assert boxes[0]["y"] < boxes[1]["y"], "one above the other where there is none"
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390


async def test_a_viewer_is_refused(browser: Any, tmp_path: Path, open_page: Any) -> None:
    pki = Authority.found(tmp_path / "pki", 30)
    made = pki.issue(Wish("controlplane", Role.DAEMON, (LOOPBACK,)), 30, replace=True)
    book = tmp_path / "tokens"
    text, line = new_token("eve", Role.VIEWER, 1, datetime.now(UTC).date())
    add_line(book, line)
    security = Security(
        TlsFiles(str(made.certificate), str(made.key), str(pki.root)),
        tokens=TokenPort(parse_address(f"{LOOPBACK}:0"), TokenBook(book)),
    )
    async with ControlPlane(
        f"{LOOPBACK}:0", f"{LOOPBACK}:1", tmp_path / "data", security=security,
        console=f"{LOOPBACK}:0", grace_seconds=0,
    ) as control:  # fmt: skip
        page = await open_page(f"{control.console_url}#/vcr")
        await page.locator("#token-text").fill(text)
        await page.keyboard.press("Enter")
        await page.get_by_text("eve (viewer)").wait_for()
        start = page.locator("#start")
        assert await start.is_disabled()
        # Whoever enables it himself is refused by the control plane.
        await start.evaluate("button => { button.disabled = false; }")
        await page.locator("#request").fill((EXAMPLES / "replace.json").read_text())
        await page.locator("#disk").fill("block2")
        await start.press("Enter")
        await page.locator("#said").get_by_text("takes the role operator").wait_for()
