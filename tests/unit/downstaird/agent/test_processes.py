"""Finding the processes at work on a region by their arguments, and following them to their end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from downstaird.agent import processes
from downstaird.agent.processes import RegionProcess
from stairlib.model.errors import UnavailableError


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Something that runs for a while with the arguments of a downstaird."""
    path = tmp_path / "downstaird"
    path.write_text("#!/bin/sh\nsleep 60 & trap 'kill $!; exit 3' TERM; wait\n")
    path.chmod(0o755)
    return str(path)


def started(program: str, verb: str, directory: Path) -> RegionProcess:
    return processes.start(program, [verb, "-d", str(directory), "-p", "1"], directory / "out")


async def found(directory: Path, program: str, count: int) -> list[RegionProcess]:
    """For a moment around exec a child has no arguments at all."""
    end = asyncio.get_running_loop().time() + 30
    while True:
        there = processes.at_work_on(directory, program)
        if len(there) == count:
            return there
        for each in there:
            each.release()
        assert asyncio.get_running_loop().time() < end, there
        await asyncio.sleep(0.01)


async def test_one_is_found_by_its_directory_alone(program: str, tmp_path: Path) -> None:
    mine, other = tmp_path / "a", tmp_path / "ab"
    mine.mkdir()
    other.mkdir()
    ours = started(program, "run", mine)
    theirs = started(program, "create", other)
    try:
        (seen,) = await found(mine, program, 1)
        assert (seen.pid, seen.verb, seen.adopted) == (ours.pid, "run", True)
        assert seen.command == ("run", "-d", str(mine), "-p", "1")
        assert not ours.adopted
        assert processes.at_work_on(mine, "/usr/bin/other") == []
        assert processes.at_work_on(tmp_path, program) == []
        assert await processes.end(seen, 30) == "ended"
        assert await ours.ended() == "ended with status 3"
        await found(mine, program, 0)
    finally:
        theirs.signal(signal.SIGTERM)
        await theirs.ended()


async def test_one_that_does_not_heed_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "downstaird"
    os.mkfifo(tmp_path / "up")
    path.write_text(f"#!/bin/sh\ntrap '' TERM; echo ready > {tmp_path}/up; exec sleep 60\n")
    path.chmod(0o755)
    process = started(str(path), "run", tmp_path)
    await asyncio.to_thread((tmp_path / "up").read_text)
    assert await processes.end(process, 0.1) == "was ended by signal SIGKILL"


async def test_one_that_is_let_go_lives_on(program: str, tmp_path: Path) -> None:
    process = started(program, "run", tmp_path)
    ending = asyncio.ensure_future(process.ended())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    process.release()
    (seen,) = await found(tmp_path, program, 1)
    await processes.end(seen, 30)
    await asyncio.to_thread(os.waitpid, process.pid, 0)


def test_a_program_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot run") as failed:
        processes.start(str(tmp_path / "none"), ["run"], tmp_path / "out")
    assert failed.value.reason == "CANNOT_RUN"


async def test_a_long_output_is_begun_anew(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "OUTPUT_BYTES_MAX", 3)
    (tmp_path / "out").write_text("before")
    process = started(program, "run", tmp_path)
    assert (tmp_path / "out.1").read_text() == "before"
    assert (tmp_path / "out").read_text() == ""
    await processes.end(process, 30)
