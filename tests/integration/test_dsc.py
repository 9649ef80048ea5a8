"""`dsc` with real downstairs: regions made and kept, members killed and back, nothing left over."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

DSC = str(Path(sys.executable).parent / "dsc")
# Not a measure of speed: other tests may have the machine at the same time.
DEADLINE = 60.0
STEP = 10


def free_base(count: int) -> int:
    """A first port such that it and the others, STEP apart, are free now.

    Below the range the system gives out by itself, so that nobody takes one in between.
    """
    for _ in range(200):
        base = random.randrange(10_000, 30_000, STEP)
        if all(is_free(base + STEP * index) for index in range(count)):
            return base
    pytest.fail("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Dsc:
    """A `dsc start` and its commands."""

    def __init__(self, folder: Path, base: int) -> None:
        self.folder = folder
        self.base = base
        self.control = f"127.0.0.1:{base + STEP * 8 + 5}"
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self._reader: threading.Thread | None = None
        self._ready: queue.Queue[bool] = queue.Queue()

    def flags(self, *more: str) -> list[str]:
        return [
            *("--region-dir", str(self.folder / "regions"), "--output-dir", str(self.folder)),
            *("--port-base", str(self.base), "--port-step", str(STEP), *more),
        ]

    def start(self, *more: str) -> None:
        self._ready = queue.Queue()
        self.process = subprocess.Popen(
            [DSC, "start", "--control", self.control, *self.flags(*more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._ready.get(timeout=DEADLINE), "\n".join(self.lines)

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if "control at" in line:
                self._ready.put(True)
        self._ready.put(False)

    def once(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DSC, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False
        )

    def cmd(self, *arguments: str) -> str:
        done = self.once("cmd", "--server", self.control, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def members(self) -> list[dict[str, object]]:
        found = json.loads(self.cmd("list", "--output", "json"))["list"]
        assert isinstance(found, list)
        return found

    def until(self, wanted: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not wanted():
            assert time.monotonic() < end, self.members()
            time.sleep(0.05)

    def end(self, number: int | None = signal.SIGTERM) -> int:
        assert self.process is not None
        assert self._reader is not None
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE)
        finally:
            self._reader.join(DEADLINE)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def dsc(tmp_path: Path) -> Iterator[Dsc]:
    made = Dsc(tmp_path, free_base(4))
    yield made
    if made.process is not None:
        made.end()


def alive(pid: object) -> bool:
    assert isinstance(pid, int)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


SMALL = ("--extent-size", "16", "--extent_count", "4", "--block-size", "512")


def test_the_documents_regions_live_and_end(dsc: Dsc) -> None:
    shape = ("--extent-size", "16384", "--extent-count", "128", "--block-size", "4096")
    dsc.start("--create", "--cleanup", *shape, "--region-count", "4")
    members = dsc.members()
    assert [member["port"] for member in members] == [dsc.base + STEP * n for n in range(4)]
    assert {member["state"] for member in members} == {"running"}
    assert members[0]["uuid"] == f"12345678-0000-0000-0000-{dsc.base:012d}"
    assert json.loads(dsc.cmd("region-info", "--output", "json"))["region-info"] == {
        "block_size": 4096,
        "blocks_per_extent": 16384,
        "extent_count": 128,
    }
    for member in members:
        assert Path(str(member["output"])).read_text().startswith(("ready", "{"))
        stored = sum(f.stat().st_blocks for f in Path(str(member["directory"])).iterdir()) * 512
        assert stored < 16 << 20, "8 GiB are created sparse"
    assert dsc.end() == 0
    assert not any(alive(member["pid"]) for member in members)
    assert all(is_free(dsc.base + STEP * n) for n in range(4))


@pytest.mark.long
def test_members_die_and_come_back(dsc: Dsc) -> None:
    dsc.start("--create", *SMALL, "--region-count", "2")
    first = dsc.members()[0]["pid"]
    assert dsc.cmd("stop", "-c", "0") == ""
    dsc.until(lambda: dsc.cmd("state", "-c", "0") == "exit")
    assert not alive(first)
    assert dsc.cmd("pid", "-c", "0") == "null"
    assert dsc.cmd("all-running") == "false"
    dsc.cmd("start", "-c", "0")
    dsc.until(lambda: dsc.cmd("all-running") == "true")

    dsc.cmd("enable-restart-all")
    second = dsc.members()[1]["pid"]
    assert isinstance(second, int)
    os.kill(second, signal.SIGKILL)
    dsc.until(lambda: dsc.members()[1]["pid"] not in (second, None))
    dsc.until(lambda: dsc.cmd("all-running") == "true")

    dsc.cmd("disable-restart-all")
    dsc.cmd("stop", "--graceful", "-c", "1")
    dsc.until(lambda: dsc.cmd("state", "-c", "1") == "stopped")
    dsc.cmd("stop-all")
    dsc.until(lambda: dsc.cmd("all-stopped") == "true")
    dsc.cmd("shutdown")
    assert dsc.end(None) == 0


@pytest.mark.long
def test_regions_are_kept_from_one_start_to_the_next(dsc: Dsc) -> None:
    made = dsc.once("create", *dsc.flags(*SMALL, "--region-count", "2", "--encrypted"))
    assert made.returncode == 0, made.stderr
    definition = dsc.folder / "regions" / str(dsc.base) / "region.json"
    before = definition.read_bytes()
    for ending in (signal.SIGINT, signal.SIGHUP):
        dsc.start("--region-count", "2", "--read-only")
        assert dsc.cmd("read-only") == "true"
        assert dsc.cmd("region-info").splitlines()[1] == "blocks_per_extent: 16"
        assert dsc.end(ending) == 0
    assert definition.read_bytes() == before

    again = dsc.once("create", *dsc.flags(*SMALL, "--region-count", "2"))
    assert again.returncode == 1
    assert "--cleanup" in again.stderr
    assert definition.read_bytes() == before
    assert dsc.once("create", *dsc.flags(*SMALL, "--cleanup")).returncode == 0
    assert definition.read_bytes() != before


def test_regions_that_differ_are_warned_of(dsc: Dsc) -> None:
    assert dsc.once("create", *dsc.flags(*SMALL, "--region-count", "2")).returncode == 0
    other = ["--port-base", str(dsc.base + STEP), "--region-count", "1", "--cleanup"]
    flags = [*dsc.flags(*SMALL), "--extent-count", "9", *other]
    assert dsc.once("create", *flags).returncode == 0
    dsc.start("--region-count", "2")
    warning = next(line for line in dsc.lines if line.startswith("WARNING"))
    assert "region 1" in warning
    assert "9 extents" in warning
    assert dsc.end() == 0


def test_what_is_wrong_is_said_in_one_sentence(dsc: Dsc) -> None:
    start = ("start", "--control", dsc.control)
    missing = dsc.once(*start, *dsc.flags("--region-count", "1"))
    assert missing.returncode == 1
    assert "--create" in missing.stderr

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", dsc.base))
        taken.listen()
        busy = dsc.once(*start, *dsc.flags("--create", *SMALL, "--region-count", "1"))
    assert busy.returncode == 1
    assert f"port {dsc.base} in use" in busy.stderr
    assert not (dsc.folder / "regions").exists(), "nothing was touched"

    with socket.socket() as taken:
        host, port = dsc.control.split(":")
        taken.bind((host, int(port)))
        taken.listen()
        busy = dsc.once(*start, *dsc.flags("--create", *SMALL, "--region-count", "1"))
    assert busy.returncode == 1
    assert dsc.control in busy.stderr
    assert not (dsc.folder / "regions").exists()

    (dsc.folder / "regions" / str(dsc.base)).mkdir(parents=True)
    strange = dsc.once(*start, *dsc.flags("--region-count", "1"))
    assert strange.returncode == 1
    assert "not a region" in strange.stderr
    assert "Traceback" not in missing.stderr + busy.stderr + strange.stderr
    assert is_free(dsc.base)
