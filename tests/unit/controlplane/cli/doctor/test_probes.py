"""What is found out about this very host."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from controlplane.cli.doctor import probes
from controlplane.cli.doctor.facts import ProgramFacts
from controlplane.cli.settings import DEFAULT_PORT
from downstaird.agent.arguments import DEFAULT_LISTEN
from downstaird.dsc.__main__ import DEFAULT_CONTROL
from stairlib.rpc.server import RpcServer
from stairlib.telemetry.tracing import Tracing
from vmmd.config import DEFAULT_ADDRESS

ROOT = Path(__file__).resolve().parents[5]
CRUCIBLE = ROOT / "examples/crucible-disks.json"


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_directory_is_tried_and_left_as_it_was(tmp_path):
    found = probes.directory_facts(tmp_path)
    assert found.failed == ()
    assert found.looked_at == found.path == str(tmp_path)
    assert found.sync_seconds > 0
    assert found.free_bytes > 0
    assert found.file_system != ""
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_there_yet_is_not_made(tmp_path):
    found = probes.directory_facts(tmp_path / "a" / "b")
    assert (found.path, found.looked_at) == (str(tmp_path / "a" / "b"), str(tmp_path))
    assert found.failed == ()
    assert list(tmp_path.iterdir()) == []


def test_one_where_nothing_can_be_made_says_why():
    found = probes.directory_facts(Path("/proc"))
    assert found.file_system == "proc"
    ((what, why),) = found.failed
    assert what == "making a file"
    assert why


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    found = probes.directory_facts(tmp_path / "file")
    assert found.failed == (("the path", "it is not a directory"),)


def test_memory_is_told_apart_from_disks():
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    assert probes.file_system_of(Path("/dev/shm")) == "tmpfs"


async def test_a_free_port_is_free_and_a_strangers_is_not():
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        # Accepts and says nothing, as a web server might.
        probe = await probes.port_facts("vmmd", port)
        assert (probe.free, probe.health) == (False, "")
        assert probe.error
    assert (await probes.port_facts("vmmd", port)).free


async def test_a_daemon_of_ours_tells_its_health():
    server = RpcServer("127.0.0.1:0", [], tracing=Tracing.configure("vmmd", "test"))
    await server.start()
    try:
        port = int(server.address.rpartition(":")[2])
        probe = await probes.port_facts("vmmd", port)
        assert not probe.free
        assert probe.health == "SERVING"
    finally:
        await server.stop(0)


def test_programs_say_their_version_or_why_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    script(tmp_path, "good", "echo; echo version 1.2; echo more")
    script(tmp_path, "bad", "echo broken >&2; exit 3")
    script(tmp_path, "dumb", "exit 4")
    script(tmp_path, "stuck", "exec sleep 60")
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 0.3)
    assert probes.asked_program("good") == ProgramFacts("good", f"{tmp_path}/good", "version 1.2")
    assert probes.asked_program("bad").error == "broken"
    assert probes.asked_program("dumb").error == "exit status 4"
    assert "no answer" in probes.asked_program("stuck").error
    assert probes.asked_program("nowhere-to-be-found").path is None


def test_a_module_that_cannot_be_imported_is_named(monkeypatch):
    assert probes.python_facts().broken == ()
    monkeypatch.setattr(probes, "MODULES", ("numpy", "no_such_module"))
    ((name, why),) = probes.python_facts().broken
    assert name == "no_such_module"
    assert "ModuleNotFoundError" in why


def test_the_programs_of_this_installation_are_found():
    assert probes.own_program("vmmd").path == str(Path(sys.executable).parent / "vmmd")


def test_the_clock_and_the_limits_are_told():
    clock = probes.clock_facts()
    assert not clock.went_back
    assert 0 < clock.resolution < 1
    limits = probes.limit_facts()
    assert limits.processors >= 1
    assert limits.memory_available > 0


def test_ports_and_extras_are_those_of_the_programs():
    """Which the client does not import; so what it says of them is compared here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {extra for _name, extra in probes.EXTRAS} == set(project["optional-dependencies"])
    assert set(probes.OWN_PROGRAMS) == set(project["scripts"])
    ports = dict(probes.PORTS)
    assert ports["controlplane"] == DEFAULT_PORT
    assert f"127.0.0.1:{ports['vmmd']}" == DEFAULT_ADDRESS
    assert f"127.0.0.1:{ports['downstaird agent']}" == DEFAULT_LISTEN
    assert f"127.0.0.1:{ports['dsc']}" == DEFAULT_CONTROL
    walk = (ROOT / "examples/replace.json").read_text() + CRUCIBLE.read_text()
    named = {port for daemon, port in probes.PORTS if daemon == "downstaird"}
    assert named == set(map(int, re.findall(r"127\.0\.0\.1:(\d+)", walk)))
