"""`docs/grpcurl.md` is true: every command in it is run, and prints what is shown there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.grpcurl.console_blocks import steps
from tests.grpcurl.stage import TOUR, grpcurl, stage

PROTOS = TOUR.parents[1] / "protos"
# Between vmmd and the processes that it starts, on sockets nobody else can open.
PRIVATE = {"MachineProcessService"}

needs_grpcurl = pytest.mark.skipif(
    grpcurl() is None, reason="grpcurl is not installed: `make grpcurl` builds it where Go is"
)


@needs_grpcurl
@pytest.mark.timeout(600)
async def test_every_command_prints_what_is_shown(tmp_path: Path) -> None:
    wrong = []
    async with stage(tmp_path / "house") as running:
        for step in steps(TOUR.read_text()):
            output = await running.run(step.command)
            found = running.play.difference(step.expected, output)
            if found:
                wrong.append(f"{TOUR.name}:{step.line}: $ {step.command}\n{found}\n\n{output}")
    assert not wrong, "\n\n".join(wrong) + "\n`make record-grpcurl` writes it down anew"


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
