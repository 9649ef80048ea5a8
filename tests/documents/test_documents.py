"""The documents are true: every command in them is run, and prints what is shown there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from downstaird.dsc.__main__ import DEFAULT_REGION_DIR
from tests.documents.console_blocks import steps
from tests.documents.stage import OPERATIONS, TOUR, TUTORIAL, grpcurl, stage

PROTOS = TOUR.parents[1] / "protos"
# Between vmmd and the processes that it starts, on sockets nobody else can open.
PRIVATE = {"MachineProcessService"}

needs_grpcurl = pytest.mark.skipif(
    grpcurl() is None, reason="grpcurl is not installed: `make grpcurl` builds it where Go is"
)

needs_qemu_io = pytest.mark.skipif(
    shutil.which("qemu-io") is None, reason="qemu-io is not installed: `apt install qemu-utils`"
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(TOUR, id="grpcurl", marks=needs_grpcurl),
        pytest.param(OPERATIONS, id="operations"),
        pytest.param(TUTORIAL, id="tutorial", marks=needs_qemu_io),
    ],
)
async def test_every_command_prints_what_is_shown(tmp_path: Path, document: Path) -> None:
    wrong = []
    played = steps(document.read_text())  # noqa: ASYNC240 - before there is anything to hold up
    async with stage(tmp_path / "house") as running:
        for step in played:
            output = await running.run(step.command)
            found = running.play.difference(step.expected, output)
            if found:
                wrong.append(f"{document.name}:{step.line}: $ {step.command}\n{found}\n\n{output}")
    assert not wrong, "\n\n".join(wrong) + "\n`make record-docs` writes it down anew"


def test_every_service_is_called() -> None:
    called = {
        name
        for step in steps(TOUR.read_text())
        for name in re.findall(r"\.(\w+)/\w+", step.command)
    }
    served = {
        name
        for file in PROTOS.rglob("*.proto")
        for name in re.findall(r"^service (\w+)", file.read_text(), re.MULTILINE)
    }
    assert served - PRIVATE - called == set()


def test_the_tutorial_says_where_the_regions_stay() -> None:
    assert f"`{DEFAULT_REGION_DIR}`" in TUTORIAL.read_text()


def test_the_tutorial_starts_the_daemons_as_the_readme_does() -> None:
    daemons = ("dsc start", "vmmd run", "controlplane run")
    readme = (TUTORIAL.parents[1] / "README.md").read_text().splitlines()
    started = [line for line in TUTORIAL.read_text().splitlines() if line.startswith(daemons)]
    assert len(started) == len(daemons)
    assert set(started) <= set(readme)
