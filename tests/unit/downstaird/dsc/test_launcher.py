"""Finding the program, clearing the place of a region, and processes that do not come up."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from downstaird.dsc.core.layout import MemberPlan
from downstaird.dsc.launcher import clear_place, require_region
from downstaird.launching import Launcher, find_program, tail
from stairlib.model.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)
from stairlib.model.geometry import Geometry
from stairlib.rpc.tls import TlsFiles


@pytest.fixture
def plan(tmp_path: Path) -> MemberPlan:
    return MemberPlan(
        0, 8810, UUID(int=7), str(tmp_path / "region" / "8810"), str(tmp_path / "out.txt")
    )


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def printed(plan: MemberPlan) -> list[str]:
    return Path(plan.output).read_text().split()


def test_a_program_that_was_given(tmp_path: Path) -> None:
    path = script(tmp_path, "")
    assert find_program(path) == path
    Path(path).chmod(0o644)
    for wrong in (path, str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(NotFoundError, match="--ds-bin"):
            find_program(wrong)


def test_the_program_on_path_comes_before_that_beside_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("path", "python"):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "downstaird"
        program.touch()
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python3"))
    assert find_program(None) == str(tmp_path / "path" / "downstaird")
    (tmp_path / "path" / "downstaird").unlink()
    assert find_program(None) == str(tmp_path / "python" / "downstaird")
    (tmp_path / "python" / "downstaird").unlink()
    with pytest.raises(NotFoundError, match="--ds-bin"):
        find_program(None)


def test_what_is_in_the_way_goes_only_with_cleanup(plan: MemberPlan) -> None:
    clear_place(plan, cleanup=False)
    directory = Path(plan.directory)
    (directory / "inner").mkdir(parents=True)
    with pytest.raises(AlreadyExistsError, match="--cleanup"):
        clear_place(plan, cleanup=False)
    assert (directory / "inner").exists()
    clear_place(plan, cleanup=True)
    assert not directory.exists()
    assert directory.parent.exists()


def test_cleanup_follows_no_link(plan: MemberPlan, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    directory = Path(plan.directory)
    directory.parent.mkdir()
    directory.symlink_to(precious)
    with pytest.raises(InvalidRequestError, match="by hand"):
        clear_place(plan, cleanup=True)
    assert precious.exists()


def test_a_region_must_be_there(plan: MemberPlan) -> None:
    with pytest.raises(NotFoundError, match="--create"):
        require_region(plan)
    Path(plan.directory).mkdir(parents=True)
    require_region(plan)


async def test_creation_passes_the_geometry(plan: MemberPlan, tmp_path: Path) -> None:
    program = script(tmp_path, "import sys; print(*sys.argv[1:])")
    launcher = Launcher(program, "127.0.0.1", read_only=False)
    await launcher.create(plan, Geometry(4096, 16, 8), cipher="aes-256-gcm")
    assert printed(plan) == [
        *("create", "-d", plan.directory, "-u", str(plan.region_id)),
        *("--block-size", "4096", "--extent-size", "16", "--extent-count", "8"),
        *("--encrypted", "--cipher", "aes-256-gcm"),
    ]


async def test_a_creation_that_fails_says_what_was_printed(
    plan: MemberPlan, tmp_path: Path
) -> None:
    program = script(tmp_path, "import sys; sys.exit('no room on the disk')")
    launcher = Launcher(program, "127.0.0.1", read_only=False)
    with pytest.raises(StairwellError, match=r"status 1.*\n.*no room on the disk"):
        await launcher.create(plan, Geometry(4096, 16, 8), cipher="")


@pytest.mark.parametrize(("read_only", "mode"), [(True, "ro"), (False, "rw")])
async def test_a_member_is_run_with_its_flags(
    plan: MemberPlan, tmp_path: Path, read_only: bool, mode: str
) -> None:
    program = script(tmp_path, "import sys; print(*sys.argv[1:])")
    process = await Launcher(program, "::1", read_only=read_only).spawn(plan)
    async with asyncio.timeout(20):
        assert await process.wait() == 0
    assert printed(plan) == [
        *("run", "-d", plan.directory, "-p", "8810", "--address", "::1", "--mode", mode)
    ]


async def test_a_member_is_given_the_tls_files(plan: MemberPlan, tmp_path: Path) -> None:
    program = script(tmp_path, "import sys; print(*sys.argv[1:])")
    files = TlsFiles("c.pem", "k.pem", "r.pem")
    process = await Launcher(program, "::1", read_only=False, tls=files).spawn(plan)
    async with asyncio.timeout(20):
        assert await process.wait() == 0
    flags = ["--cert-pem", "c.pem", "--key-pem", "k.pem", "--root-cert-pem", "r.pem"]
    assert printed(plan)[-6:] == flags


async def test_a_program_that_cannot_run(plan: MemberPlan, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot run"):
        await Launcher(str(tmp_path / "none"), "127.0.0.1", read_only=False).spawn(plan)


def test_addresses_from_here(plan: MemberPlan) -> None:
    for host, address in (("0.0.0.0", "127.0.0.1:8810"), ("::", "[::1]:8810"), ("h", "h:8810")):
        assert Launcher("p", host, read_only=False).address(plan) == address


def test_the_tail_is_short(plan: MemberPlan) -> None:
    assert tail(plan) == ""
    Path(plan.output).write_text("\n".join(f"line {n}" for n in range(1000)))
    assert tail(plan).splitlines()[-1] == "  line 999"
    assert len(tail(plan).splitlines()) == 9


async def test_the_reason_of_a_failure_needs_no_room_on_disk(
    plan: MemberPlan, tmp_path: Path
) -> None:
    full = replace(plan, output="/dev/full")
    program = script(tmp_path, "import sys; sys.exit('no space left, make some')")
    with pytest.raises(StairwellError, match="no space left, make some"):
        await Launcher(program, "127.0.0.1", read_only=False).create(
            full, Geometry(512, 16, 4), cipher=""
        )
