"""`stairwell top` on real daemons: as text, and as a screen of 80 by 24 with its keys."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from controlplane.cli.session import Session
from controlplane.cli.settings import Settings
from controlplane.cli.top.model import Model
from controlplane.cli.top.rows import COLUMNS, log_texts
from controlplane.cli.top.screen import TopApp
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from tests.integration.cluster import BIN, DEADLINE, LOOPBACK, MIB, Cluster, until
from tests.integration.volume import Volume, fresh_volume
from tests.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

SLOW = 2 * MIB
# So slow that it does not end while a program is started twice on a busy machine.
SLOWER = 128 << 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster.started(tmp_path_factory.mktemp("top") / "cluster") as started:
        yield started


@asynccontextmanager
async def screen(address: str) -> AsyncIterator[tuple[TopApp, Pilot[None]]]:
    """The screen as an old terminal has it."""
    tracing = Tracing.configure("stairwell", "test")
    async with Session(Settings(server=address), tracing) as session:
        app = TopApp(session, Model(), 0.2)
        async with app.run_test(size=(80, 24)) as pilot:
            yield app, pilot


async def seen(pilot: Pilot[None], wanted: Callable[[], object]) -> None:
    """Waits until the screen is as wanted."""
    app = pilot.app
    assert isinstance(app, TopApp)
    end = time.monotonic() + DEADLINE
    while not wanted():
        assert time.monotonic() < end, picture(app)
        await pilot.pause(0.05)


def picture(app: TopApp) -> str:
    """The characters on the screen, line by line."""
    return "\n".join(
        "".join(segment.text for segment in line).rstrip()
        for line in app.screen._compositor.render_strips()
    )


async def in_repair(volume: Volume, rate: int = SLOW) -> str:
    """A replacement that takes its time; its id."""
    await volume.fill(32 * MIB)
    await limit(volume, rate)
    answer = await volume.replace()
    await volume.mid_repair(answer.replacement_id)
    return answer.replacement_id


async def limit(volume: Volume, rate: int) -> None:
    request = replacement_pb.SetRepairLimitsRequest(
        disk=volume.disk, bytes_per_second_max=rate, adaptive=False
    )
    stub = replacement_grpc.ReplacementServiceStub
    await volume.cluster.call(stub, "SetRepairLimits", request)


@pytest.mark.long
async def test_a_replacement_is_watched_paused_resumed_and_quickened(cluster: Cluster) -> None:
    async with (
        fresh_volume(cluster) as volume,
        volume.load(),
        screen(cluster.controlplane.address) as (app, pilot),
    ):
        name = await in_repair(volume)
        await seen(pilot, lambda: "repair" in picture(app) and "◐" in picture(app))
        await seen(
            pilot, lambda: any("replacement in repair" in one for one in log_texts(app.model))
        )
        text = picture(app)
        assert all(len(line) <= COLUMNS for line in text.splitlines())
        assert len(text.splitlines()) == 24
        for word in (
            volume.disk,
            "guest IOPS",
            "guest p99",
            "limit 2 MiB/s",
        ):
            assert word in text, text
        assert app.selected == volume.disk

        await pilot.press("p")
        await until(lambda: cluster.get_replacement(name), lambda one: one.paused_in)
        await seen(pilot, lambda: "paused" in picture(app))
        await pilot.press("r")
        await until(lambda: cluster.get_replacement(name), lambda one: not one.paused_in)

        await pilot.press("l", *"fast", "enter")
        await seen(pilot, lambda: any("is not a size" in line for line in log_texts(app.model)))
        await pilot.press("l", *"0", "enter")
        await volume.done(name)
        await seen(pilot, lambda: any("in done" in line for line in log_texts(app.model)))
        await seen(pilot, lambda: "●●●" in picture(app))
        # Nothing runs any more: a key that wants something that runs says so.
        await pilot.press("p")
        await seen(pilot, lambda: "no replacement runs" in picture(app))

        for key, words in (
            ("2", "PHASE"),
            ("3", volume.instance),
            ("4", "USED BY"),
            ("1", "SLOTS"),
        ):
            await pilot.press(key)
            await seen(pilot, lambda words=words: words in picture(app))


async def test_a_limit_that_is_not_given_after_all_changes_nothing(cluster: Cluster) -> None:
    async with (
        fresh_volume(cluster, spare=False),
        screen(cluster.controlplane.address) as (app, pilot),
    ):
        await seen(pilot, lambda: app.selected)
        await pilot.press("l")
        assert isinstance(app.focused, Input)
        await pilot.press("5", "escape")
        assert isinstance(app.focused, DataTable)
        await pilot.press("q")
        await seen(pilot, lambda: not app.is_running)
        assert app.return_code == 0


@pytest.mark.long
async def test_a_control_plane_that_goes_away_and_comes_back(cluster: Cluster) -> None:
    async with (
        fresh_volume(cluster, spare=False) as volume,
        screen(cluster.controlplane.address) as (app, pilot),
    ):
        await seen(pilot, lambda: volume.disk in picture(app))
        cluster.controlplane.kill()
        await seen(pilot, lambda: "NO ANSWER" in picture(app))
        # What was known is still shown.
        assert volume.disk in picture(app)
        assert app.query_one("#head", Static).has_class("away")
        await cluster.controlplane.start()
        await seen(pilot, lambda: "answers again" in picture(app))
        assert "NO ANSWER" not in picture(app)


@pytest.mark.long
async def test_once_is_text_and_data_without_a_screen(cluster: Cluster, tmp_path: Path) -> None:
    async with fresh_volume(cluster) as volume, volume.load():
        name = await in_repair(volume, SLOWER)
        answer = (await cluster.cli("top", "--once")).good()
        assert all(len(line) <= COLUMNS for line in answer.out.splitlines())
        for word in (volume.disk, volume.instance, "◐", "guest p99", "repair", "slot 2: "):
            assert word in answer.out, answer.out
        data = (await cluster.cli("top", "--output", "json")).good().json
        assert data["guests"][volume.disk]["requests_per_second"] > 0
        (row,) = [row for row in data["replacements"] if row["disk"] == volume.disk]
        assert (row["slot"], row["phase"]) == ("2", "repair")
        await limit(volume, 0)
        await volume.done(name)
        # What the machine remembers of it is drawn afterwards.
        picture = tmp_path / "run.svg"
        told = (await cluster.cli("replacement", "plot", name, "-f", picture)).good()
        assert "guest p99" in told.out
        assert volume.disk in picture.read_text()


async def test_without_textual_the_text_is_printed(cluster: Cluster) -> None:
    """On a terminal, in an installation without the extra."""
    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'textual' else find(n, *a)\n"
        "from controlplane.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "-s", cluster.controlplane.address, "top"]
    code, shown = await asyncio.to_thread(on_terminal, command)
    assert code == 0, shown
    assert "pip install 'stairwell[tui]'" in shown
    assert "no disks" in shown


async def test_a_control_plane_that_is_not_there_is_an_error() -> None:
    port = free_ports(1)
    code, shown = await asyncio.to_thread(
        on_terminal, [str(BIN / "stairwell"), "-s", f"{LOOPBACK}:{port}", "top"]
    )
    assert code == 1
    assert "controlplane run" in shown


def on_terminal(command: list[str]) -> tuple[int, str]:
    """(exit code, what was shown) of a command that believes it is on a terminal."""
    recorder = "import pty, sys, os; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-c", recorder, *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout
